"""Images that stand on both sides of a split, byte by byte or nearly."""

import hashlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
from datasets.utils import tqdm
from PIL import Image

from hf_ava_bench.data import read_image


class Leak(NamedTuple):
    """Two items that show the same image: ids, and in how many of 64 bits their difference hashes differ."""

    left: str
    right: str
    distance: int
    same_bytes: bool


def _difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 cells is brighter than its right neighbour."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, :-1] > grey[:, 1:]).ravel()
    return int(sum(1 << int(i) for i in np.flatnonzero(bits)))


def _hashes(table: datasets.Dataset) -> tuple[list[str], list[str], npt.NDArray[np.uint64]]:
    ids, digests, bits = [], [], []
    stored = table.select_columns(["id", "image"]).cast_column("image", datasets.Image(decode=False))
    for row in tqdm(stored, desc="hashing images", unit="image"):
        data = read_image(row["image"])
        ids.append(row["id"])
        digests.append(hashlib.sha256(data).hexdigest())
        with Image.open(io.BytesIO(data)) as image:
            bits.append(_difference_hash(image))
    return ids, digests, np.array(bits, dtype=np.uint64)


def find_leaks(left: datasets.Dataset, right: datasets.Dataset, *, max_distance: int = 4) -> list[Leak]:
    """Returns the pairs of items of two splits whose images are equal or nearly so.

    Nearly means that 64-bit difference hashes differ in `max_distance` bits at most; flat or simple drawings may agree
    by accident, so look at what is found.

    Args:
        left, right (`datasets.Dataset`): items, see [`load_ability`].
        max_distance (`int`, defaults to 4): most bits that differ; -1 finds equal bytes only.

    Example:

    ```python
    >>> from hf_ava_bench import find_leaks, load_ability
    >>> train = load_ability("counting", source="mini", n=4)
    >>> len(find_leaks(train, train, max_distance=-1))
    4

    ```
    """
    left_ids, left_digests, left_bits = _hashes(left)
    right_ids, right_digests, right_bits = _hashes(right)
    return list(_pairs(left_ids, left_digests, left_bits, right_ids, right_digests, right_bits, max_distance))


def _pairs(
    left_ids: list[str],
    left_digests: list[str],
    left_bits: npt.NDArray[np.uint64],
    right_ids: list[str],
    right_digests: list[str],
    right_bits: npt.NDArray[np.uint64],
    max_distance: int,
) -> Iterator[Leak]:
    digests = np.array(right_digests)
    for name, digest, bits in zip(left_ids, left_digests, left_bits, strict=True):
        distance = np.bitwise_count(right_bits ^ bits)
        same = digests == digest
        for index in np.flatnonzero(same | (distance.astype(int) <= max_distance)):
            yield Leak(name, right_ids[int(index)], int(distance[index]), bool(same[index]))
