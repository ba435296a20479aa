"""What the arguments that several public functions share may be."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from hf_diorama.draws import SPLITS

SIZES = (32, 512)
"""Smallest and largest image size in pixels."""


def check_integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """Returns a whole number, Python's or numpy's, as an `int`.

    Args:
        name (`str`): what the number is called.
        value (`Any`): what was given.
        low (`int`, *optional*): smallest value.
        high (`int`, *optional*): largest value.

    Raises:
        ValueError: if it is not a whole number within these bounds.

    Example:

    ```python
    >>> from hf_diorama.arguments import check_integer
    >>> check_integer("n", 3, low=1)
    3

    ```
    """
    number = int(value) if _is_integer(value) else None
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        bounds = "" if low is None else f" from {low}" if high is None else f" from {low} to {high}"
        raise ValueError(f"`{name}` must be a whole number{bounds}, got {value!r}.")
    return number


def check_bounds(name: str, value: Any, high: int) -> tuple[int, int]:
    """Returns smallest and largest number, both `value` if it is one whole number, within 1 to `high`.

    Raises:
        ValueError: if it is neither a whole number nor two of them, smallest first.
    """
    bounds = [value, value] if _is_integer(value) else value
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(_is_integer, bounds))
    if not is_pair or not 1 <= bounds[0] <= bounds[1] <= high:
        raise ValueError(
            f"`{name}` must be a whole number, or its smallest and largest value, within 1..{high}; got {value!r}."
        )
    return int(bounds[0]), int(bounds[1])


def check_size(image_size: object) -> int:
    """Returns an image size, height and width in pixels."""
    return check_integer("image_size", image_size, *SIZES)


def check_split(split: object) -> str:
    """Returns the name of a split."""
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    return str(split)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
