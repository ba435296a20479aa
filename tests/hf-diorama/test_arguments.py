"""Arguments that several public functions share."""

from typing import Any

import numpy as np
import pytest

from hf_diorama.arguments import check_bounds, check_integer, check_size, check_split


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7)], ids=lambda value: type(value).__name__)
def test_whole_numbers_become_int(value: Any) -> None:
    assert type(check_integer("n", value, 1, 9)) is int
    assert check_bounds("n", value, 9) == (7, 7)
    assert check_bounds("n", [1, value], 9) == (1, 7)


@pytest.mark.parametrize("value", [True, np.bool_(True), 7.0, "7", None, [7], 0, 10], ids=repr)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="`n` must be a whole number from 1 to 9, got "):
        check_integer("n", value, 1, 9)


@pytest.mark.parametrize(
    "value", [True, 2.0, "12", None, (), (1,), (1, 2, 3), (2, 1), (0, 1), (1, 10), {1, 2}], ids=repr
)
def test_bounds_are_one_or_two_numbers_smallest_first(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"`n` must be a whole number, or its smallest and largest value, within 1\.\.9"
    ):
        check_bounds("n", value, 9)


def test_sizes_and_splits() -> None:
    assert (check_size(32), check_size(512)) == (32, 512)
    assert check_split("heldout") == "heldout"
    with pytest.raises(ValueError, match="from 32 to 512, got 31"):
        check_size(31)
    with pytest.raises(ValueError, match="train, validation, test, heldout, got 'dev'"):
        check_split("dev")
