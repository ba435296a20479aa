"""Spec section 1: names, splits, determinism, streaming, sharding and what is refused."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image

import hf_diorama as dio
from hf_diorama.draws import SPLITS

SMALL: dict[str, Any] = {"image_size": 32}


def pixels(row: dict[str, Any]) -> bytes:
    return row["image"].tobytes()


def test_import_brings_no_torch() -> None:
    code = (
        "import sys, hf_diorama; print(sorted({'torch', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_rows_are_equal_across_processes_and_orders() -> None:
    code = (
        "import hashlib, hf_diorama as dio\n"
        "for i in reversed(range(4)):\n"
        "    for world in ('scenes', 'creatures'):\n"
        "        print(world, i, hashlib.sha256(dio.render(world, i, image_size=48)['image'].tobytes()).hexdigest())\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    import hashlib

    here = {}
    for world in ("creatures", "scenes"):
        for i in range(4):
            here[world, i] = hashlib.sha256(pixels(dio.render(world, i, image_size=48))).hexdigest()
    lines = (line.split() for line in runs.pop().splitlines())
    assert {(world, int(i)): digest for world, i, digest in lines} == here


@pytest.mark.parametrize("world", ["creatures", "scenes"])
def test_load_stream_and_render_give_equal_rows(world: str) -> None:
    ds = dio.load(world, "test", n=7, seed=4, **SMALL)
    streamed = list(dio.stream(world, "test", n=7, seed=4, **SMALL))
    assert len(ds) == len(streamed) == 7
    assert ds.split == "test"
    for index in range(7):
        rendered = dio.render(world, index, 4, split="test", **SMALL)
        assert pixels(ds[index]) == pixels(streamed[index]) == pixels(rendered)
        assert ds[index]["key"] == streamed[index]["key"] == rendered["key"]
    plain = [name for name, feature in ds.features.items() if not isinstance(feature, datasets.Image)]
    assert (
        ds.select_columns(plain)[:]
        == datasets.Dataset.from_list(
            [{name: row[name] for name in plain} for row in streamed], features=ds.select_columns(plain).features
        )[:]
    )


def test_rows_do_not_depend_on_their_number() -> None:
    few, many = dio.load("creatures", n=3, **SMALL), dio.load("creatures", n=130, **SMALL)
    assert [pixels(few[i]) for i in range(3)] == [pixels(many[i]) for i in range(3)]
    assert [row["index"] for row in many["key"]] == list(range(130))


def test_processes_change_no_row() -> None:
    ds = dio.load("creatures", n=9, seed=8, num_proc=2, **SMALL)
    assert [pixels(row) for row in ds] == [pixels(dio.render("creatures", i, 8, **SMALL)) for i in range(9)]


def test_splits_and_seeds_share_no_row() -> None:
    seen = {pixels(dio.render("creatures", i, seed, split=split, **SMALL)) for split in SPLITS for seed in (0, 1)
            for i in range(5)}  # fmt: skip
    assert len(seen) == len(SPLITS) * 2 * 5


def test_cache_key_holds_all_that_changes_rows(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"split": "test"},
        {"image_size": 40},
        {"n": 3},
        {"habitat_bias": 1.0},
        {"branching": (1, 1, 1, 1, 2)},
    ]
    files = [
        tuple(file["filename"] for file in dio.load("creatures", **{"n": 2, **SMALL, **variant}).cache_files)
        for variant in variants
    ]
    assert len(set(files)) == len(variants)
    assert dio.load("creatures", n=2, **SMALL).cache_files[0]["filename"] == files[0][0]


def test_two_workers_cover_each_index_once() -> None:
    data = pytest.importorskip("torch.utils.data")
    stream = dio.stream("creatures", n=11, **SMALL).select_columns(["key"])
    loader = data.DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(row["key"]["index"] for row in loader) == list(range(11))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_of_a_job_cover_each_index_once(world_size: int) -> None:
    stream = dio.stream("creatures", n=10, **SMALL)
    parts = [split_dataset_by_node(stream, rank, world_size) for rank in range(world_size)]
    assert sorted(row["key"]["index"] for part in parts for row in part) == list(range(10))


def test_stream_starts_at_once() -> None:
    assert [row["key"]["index"] for row in islice(dio.stream("creatures", **SMALL), 3)] == [0, 1, 2]


def test_parquet_round_trip(tmp_path: Path) -> None:
    ds = dio.load("creatures", n=5, seed=6, **SMALL)
    ds.to_parquet(tmp_path / "rows.parquet")
    again = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert again.features == ds.features
    for a, b in zip(ds, again, strict=True):
        assert pixels(a) == pixels(b)
        np.testing.assert_array_equal(np.asarray(a["part_masks"]), np.asarray(b["part_masks"]))
        assert a["parts"] == b["parts"]


@pytest.mark.parametrize("size", [32, 96, 97, 193, 512])
def test_any_size_in_range_renders(size: int) -> None:
    row = dio.render("creatures", 1, image_size=size)
    assert row["image"].size == row["part_masks"].size == (size, size)


def test_numbers_of_numpy_are_numbers() -> None:
    ours, theirs = (
        dio.render("creatures", kind(3), kind(2), kind(48), split="test") for kind in (int, lambda n: np.int64(n))
    )
    assert pixels(ours) == pixels(theirs)
    assert ours["key"] == theirs["key"]
    assert all(type(theirs["key"][name]) is int for name in ("seed", "index", "image_size"))
    assert len(dio.load("creatures", n=np.int64(2), **SMALL)) == 2


def test_photos_stand_in_the_key_as_one_hash() -> None:
    photos = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(3)]
    first, again = (
        json.loads(dio.render("scenes", i, image_size=32, photos=photos)["key"]["options"]) for i in (0, 1)
    )
    assert first == again
    assert isinstance(first["photos"], str)
    other = dio.render("scenes", 0, image_size=32, photos=photos[:2])["key"]["options"]
    assert json.loads(other) != first


def test_list_worlds_gives_options_with_defaults() -> None:
    worlds = dio.list_worlds()
    assert sorted(worlds) == ["creatures", "scenes"]
    assert worlds["creatures"] == {"branching": (3, 2, 2, 2, 4), "habitat_bias": 0.3, "long_tail": 0.0}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("creature", {}, r"a world \(creatures, scenes\)"),
    ("creatures", {"split": "training"}, "train, validation, test, heldout"),
    ("creatures", {"n": 0}, "whole number from 1, got 0"),
    ("creatures", {"n": 2.5}, "whole number"),
    ("creatures", {"n": True}, "whole number"),
    ("creatures", {"seed": "7"}, "whole number"),
    ("creatures", {"image_size": 31}, "32 to 512, got 31"),
    ("creatures", {"image_size": 513}, "32 to 512, got 513"),
    ("creatures", {"image_size": 64.0}, "32 to 512"),
    ("creatures", {"habitat": 1}, "branching, habitat_bias, long_tail"),
    ("creatures", {"habitat_bias": 1.5}, r"\[0, 1\], got 1.5"),
    ("creatures", {"habitat_bias": "much"}, "number"),
    ("creatures", {"long_tail": -1}, r"\[0, 5\]"),
    ("creatures", {"branching": 96}, "five whole numbers"),
    ("scenes", {"topic": "counting?"}, "objects"),
]


@pytest.mark.parametrize(("world", "arguments", "message"), BAD)
def test_bad_input_is_one_clear_error(world: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dio.load(world, **{"n": 1, **arguments})
    with pytest.raises(ValueError, match=message):
        dio.stream(world, **arguments)


@pytest.mark.parametrize("index", [-1, 1.0, "0"])
def test_render_refuses_bad_indices(index: Any) -> None:
    with pytest.raises(ValueError, match="`index` must be a whole number from 0"):
        dio.render("creatures", index)
