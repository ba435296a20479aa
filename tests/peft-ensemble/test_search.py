"""Successive halving stops candidates and changes none."""

import json

import pytest
import torch
from safetensors.torch import load_file

from peft_ensemble import AdaptFormerConfig, MemberSpec, PeftEnsemble, UnsupervisedSelector
from peft_ensemble.search import check_halving, plan_rounds
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images, save_backbones


@pytest.mark.parametrize(
    ("candidates", "keep_one_of", "rounds"),
    [
        (24, 3, [(1 / 9, 8), (1 / 3, 3)]),
        (24, 2, [(1 / 16, 12), (1 / 8, 6), (1 / 4, 3), (1 / 2, 2)]),
        (4, 4, [(1 / 4, 1)]),
        (3, 4, []),
        (1, 2, []),
    ],
)
def test_rounds(candidates, keep_one_of, rounds):
    assert plan_rounds(candidates, keep_one_of) == rounds


@pytest.mark.parametrize("keep_one_of", [1, 0, 2.0, True])
def test_other_parts_are_refused(keep_one_of):
    with pytest.raises(ValueError, match="halving must be an integer from 2"):
        check_halving(keep_one_of, UnsupervisedSelector())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same grid with and without successive halving: learning rates from useless to good, adapters in block 1."""
    backbones = save_backbones(tmp_path_factory.mktemp("backbones"))
    search = {"learning_rate": [1e-6, 1e-5, 1e-2, 1e-3], "drop_path": [0.2]}
    specs = MemberSpec.grid(backbones[:1], [AdaptFormerConfig(bottleneck=4, blocks=[1])], search)
    ensembles = []
    for name, halving in (("whole", None), ("halved", 2)):
        ensemble = PeftEnsemble(specs, LABEL_NAMES, tmp_path_factory.mktemp(name))
        pool = draw_images(30, seed=1)
        ensembles.append(ensemble.fit(draw_images(12, seed=0), arguments(), pool, halving=halving))
    return ensembles


def test_candidates_that_come_through_are_those_of_whole_trainings_bit_for_bit(both):
    halved = both[1]
    folders = sorted(path.name for path in (halved.output_dir / "members").iterdir())
    assert len(folders) == 1  # and no checkpoints are left of the others
    assert folders == [halved.members[0].id]
    expected, actual = (
        load_file(ensemble.output_dir / "members" / folders[0] / "adapter_model.safetensors") for ensemble in both
    )
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert halved.members[0].training["learning_rate"] > 1e-5


def test_rounds_are_recorded_and_those_who_were_stopped_say_so(both):
    record = json.loads((both[1].output_dir / "ensemble.json").read_text())
    (rounds,) = record["rounds"].values()
    assert [(row["until"], len(row["candidates"]), len(row["kept"])) for row in rounds] == [(0.25, 4, 2), (0.5, 2, 1)]
    stopped = next(spec for spec in both[1].specs if spec.id not in rounds[0]["kept"])
    with pytest.raises(ValueError, match="successive halving has stopped it; take one of `members`"):
        both[1].load(stopped)


def test_a_folder_knows_its_halving(both):
    labeled, pool = draw_images(12, seed=0), draw_images(30, seed=1)
    before = {path: path.stat().st_mtime_ns for path in both[1].output_dir.rglob("*.safetensors")}
    both[1].fit(labeled, arguments(), pool, halving=2)
    assert {path: path.stat().st_mtime_ns for path in both[1].output_dir.rglob("*.safetensors")} == before
    for options in ({}, {"halving": 3}, {"halving": 2, "selector": UnsupervisedSelector(combine="vote")}):
        with pytest.raises(ValueError, match="made with other halving"):
            both[1].fit(labeled, arguments(), pool, **options)
    with pytest.raises(ValueError, match="halving must be an integer from 2"):
        both[1].fit(labeled, arguments(), pool, halving=1)
