"""The probe head, and with it the known encoders in their provable order, on every kind of answer it has."""

import numpy as np
import pytest
import torch

import hf_diorama
from hf_ava_bench import load_ability
from hf_ava_bench.functional import srgb_to_lab
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.probe import _lab_to_srgb, score_probe
from hf_ava_bench.runner.towers import VisionTower
from hf_ava_bench.statistics import holm, sign_flip_test

SPLITS = {"train": 500, "test": 200}
RANDOM = "vfm-nano-random"  # a ViT that was never trained


@pytest.fixture(scope="module")
def scores():
    """Per-item metric of each encoder in each ability, higher is better, computed when asked for."""
    tables, found = {}, {}

    def get(ability, name):
        if (ability, name) not in found:
            if ability not in tables:
                tables[ability] = [load_ability(ability, "mini", s, n=n, image_size=64) for s, n in SPLITS.items()]
            tower = VisionTower(hf_diorama.model_path(RANDOM)) if name == RANDOM else KnownEncoder(name)
            tokens = [compute_features(table, tower, progress=False) for table in tables[ability]]
            score = score_probe(ability, *tables[ability], *tokens, steps=250, batch_size=32)
            assert score.coverage == 1
            found[ability, name] = np.array(score.values) * (1 if score.higher_is_better else -1)
        return found[ability, name]

    return get


# (ability, better, worse): follows from what each encoder can see.
ORDER = [
    ("color", "patch-colour", "edge-hist"),
    ("color", "patch-colour", "grey-lowpass"),
    ("color", "grey-lowpass", "blind"),
    ("color", "raw-patch", "edge-hist"),
    ("color", RANDOM, "blind"),
    ("texture", "edge-hist", "patch-colour"),
    ("texture", "edge-hist", "blind"),
    ("orientation", "edge-hist", "position-only"),
    ("orientation", "edge-hist", "patch-colour"),
]


def test_known_encoders_come_out_in_their_provable_order(scores):
    p_values = []
    for ability, better, worse in ORDER:
        difference = scores(ability, better) - scores(ability, worse)
        assert difference.mean() > 0, (ability, better, worse)
        p_values.append(sign_flip_test(difference))
    assert max(holm(p_values)) < 0.01


def test_blind_and_position_only_know_nothing(scores):
    for name in ("blind", "position-only"):
        chance = 1 / 9
        accuracy = scores("texture", name).mean()
        assert abs(accuracy - chance) < 4 * np.sqrt(chance * (1 - chance) / SPLITS["test"]), name


def test_oracle_tokens_are_readable(scores):
    assert scores("texture", "oracle").mean() > 0.98


def test_no_probe_writes_text(scores):
    table = load_ability("ocr", "mini", "test", n=2, image_size=32)
    with pytest.raises(ValueError, match="cannot write text"):
        score_probe("ocr", table, table, torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))


def test_lab_goes_there_and_back():
    rgb = np.array([[12.0, 200.0, 30.0], [255.0, 255.0, 255.0], [3.0, 2.0, 1.0]])
    for color in rgb:
        np.testing.assert_allclose(_lab_to_srgb(srgb_to_lab(color)), color, atol=0.01)
