"""Random draws that are the same on every machine, for every order of rows, and for every version of numpy.

numpy keeps the raw stream of a bit generator stable for ever, but not the streams of `Generator` methods (NEP 19). So
draws are made from the raw 64-bit words of Philox, a counter-based generator that costs nothing to key anew for every
row.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

SPLITS = ("train", "validation", "test", "heldout")
"""Names of the splits. Splits of one seed never share a row.

`heldout` is for final numbers, on seeds from 1000: those below were looked at while `llava-nano` was trained.
"""


class Draws:
    """A stream of random draws for one row, named by everything that may change it.

    Args:
        *key (`str` or `int`):
            What names the row and the stream, e.g. `("creatures", 1, "train", 0, 17, "pose")`. Equal keys give equal
            draws; two keys that differ anywhere give independent ones.

    Example:

    ```python
    >>> from hf_diorama.draws import Draws
    >>> Draws("creatures", 17).integer(0, 96) == Draws("creatures", 17).integer(0, 96)
    True

    ```
    """

    def __init__(self, *key: str | int):
        digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def unit(self) -> float:
        """Returns a number in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """Returns a number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Returns an integer in [low, high), which must not be empty."""
        if low >= high:
            raise ValueError(f"Expected `low` below `high`, got [{low}, {high}).")
        return low + int(self.unit() * (high - low))

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.unit() < probability

    def choice(self, options: Sequence[T]) -> T:
        """Returns one of the options, each as likely as the others."""
        return options[self.integer(0, len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Returns `count` different options in random order."""
        pool = list(options)
        return [pool.pop(self.integer(0, len(pool))) for _ in range(count)]

    def bytes(self, *shape: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """Returns independent uniform bytes (`numpy.ndarray` of the given shape, uint8)."""
        size = int(np.prod(shape))
        words: np.ndarray[Any, np.dtype[np.uint64]] = self._bits.random_raw((size + 7) // 8)
        return words.astype("<u8").view(np.uint8)[:size].reshape(shape)
