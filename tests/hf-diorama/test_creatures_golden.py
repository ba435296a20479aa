"""Pixels that must not change unless the version of the world does."""

import hashlib

import pytest

import hf_diorama as dio
from hf_diorama.worlds import WORLDS

GOLDEN = {
    ("train", 0, 0, 64): "92b10bfb08dff5a5517357a145496371",
    ("train", 0, 17, 64): "5518b6187ffef5c42f02c30e9f672deb",
    ("train", 1, 17, 64): "81e007f93832c2cb3c4bfb1f92ae6650",
    ("heldout", 0, 17, 64): "0cc5a8721ddbb4ddbb5fe73deac03f90",
    ("validation", 3, 100_000, 32): "5e1a5bea5c1bd47000320d415d16267b",
    ("test", 0, 5, 128): "4dd01e5d727614f1941c2c18710ee667",
    ("test", 0, 6, 224): "981dcb5193dbc3db87c26ba502270ddc",
}


def digest(row: dict) -> str:
    pixels = row["image"].tobytes() + row["part_masks"].tobytes()
    return hashlib.sha256(pixels).hexdigest()[:32]


def test_golden_belongs_to_this_version() -> None:
    assert WORLDS["creatures"].version == 1


@pytest.mark.parametrize(("split", "seed", "index", "size"), GOLDEN)
def test_pixels_equal_golden(split: str, seed: int, index: int, size: int) -> None:
    row = dio.render("creatures", index, seed, size, split=split)
    assert digest(row) == GOLDEN[split, seed, index, size]
