"""The formulas on tensors: worked cases and properties."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from prompt_cam import (
    aggregate_heads,
    blur_weights,
    count_traits,
    leave_one_out,
    patch_attention,
    remove_greedily,
    shapley_values,
    smooth_maps,
)

seeds = st.integers(0, 2**16)


def table_game(seed: int, num_heads: int) -> torch.Tensor:
    """A score for each set of blurred heads, by the number that its flags spell."""
    return torch.randn(2**num_heads, generator=torch.Generator().manual_seed(seed))


def score_of(table: torch.Tensor, blurred: torch.Tensor) -> torch.Tensor:
    powers = 2 ** torch.arange(blurred.shape[-1])
    return table[(blurred.long() * powers).sum(-1)]


@given(seeds, st.integers(1, 6))
def test_shapley_values_are_efficient_and_match_permutations(seed: int, num_heads: int) -> None:
    table = table_game(seed, num_heads)
    values = shapley_values(lambda blurred: score_of(table, blurred), 1, num_heads)[0]
    full, empty = table[0], table[-1]
    assert_close(values.sum(), full - empty, atol=1e-4, rtol=1e-4)
    if num_heads <= 4:
        expected = torch.zeros(num_heads)
        for order in itertools.permutations(range(num_heads)):
            blurred = torch.ones(num_heads, dtype=torch.bool)
            for head in order:
                before = score_of(table, blurred)
                blurred = blurred.clone()
                blurred[head] = False
                expected[head] += (score_of(table, blurred) - before) / math.factorial(num_heads)
        assert_close(values, expected, atol=1e-5, rtol=1e-4)


@given(seeds, st.integers(1, 6))
def test_rankings_agree_where_heads_add_up(seed: int, num_heads: int) -> None:
    worth = torch.randperm(num_heads, generator=torch.Generator().manual_seed(seed)).float()

    def score_fn(blurred: torch.Tensor) -> torch.Tensor:
        return -(blurred * worth).sum(-1)

    expected = worth.argsort(descending=True)
    assert_close(remove_greedily(score_fn, 1, num_heads).order[0].flip(0), expected)
    assert_close(leave_one_out(score_fn, 1, num_heads)[0], worth)
    assert_close(shapley_values(score_fn, 1, num_heads)[0], worth, atol=1e-5, rtol=0)


@given(seeds, st.integers(2, 5))
def test_greedy_removal_takes_the_best_of_each_step(seed: int, num_heads: int) -> None:
    table = table_game(seed, num_heads)
    removal = remove_greedily(lambda blurred: score_of(table, blurred), 1, num_heads)
    gone: set[int] = set()
    for step in range(num_heads):
        scores = {
            head: table[sum(2**h for h in gone | {head})].item() for head in range(num_heads) if head not in gone
        }
        best = max(scores, key=lambda head: scores[head])
        assert removal.order[0, step] == best
        assert removal.scores[0, step].item() == scores[best]
        gone.add(best)


def test_first_head_goes_first_among_equals() -> None:
    removal = remove_greedily(lambda blurred: torch.zeros(blurred.shape[:2]), 2, 3)
    assert removal.order.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_shapley_values_of_many_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 16 heads, got 17"):
        shapley_values(lambda blurred: torch.zeros(blurred.shape[:2]), 1, 17)


@given(seeds, st.integers(1, 5), st.integers(1, 9))
def test_patch_attention_sums_to_one(seed: int, num_prompts: int, num_patches: int) -> None:
    scores = torch.randn(2, num_prompts + num_patches, generator=torch.Generator().manual_seed(seed))
    attention = scores.softmax(-1)
    patches = slice(num_prompts, num_prompts + num_patches)
    assert_close(patch_attention(attention, patches), scores[:, patches].softmax(-1), atol=1e-6, rtol=1e-5)
    assert torch.equal(patch_attention(attention, patches, None), attention[:, patches])


def test_attention_that_sees_no_patch_is_zero_and_no_nan() -> None:
    assert patch_attention(torch.tensor([1.0, 0.0, 0.0]), slice(1, 3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("blur", "expected"), [("patches", [0, 0, 0.5, 0.5, 0]), ("all_tokens", [0.25] * 4 + [0])])
def test_blurred_rows_leave_padding_out(blur: str, expected: list[float]) -> None:
    assert blur_weights(5, slice(2, 4), blur).tolist() == expected


def test_misspelt_choices_are_named() -> None:
    with pytest.raises(ValueError, match="'patches' or 'all_tokens', got 'pacthes'"):
        blur_weights(4, slice(2, 4), "pacthes")
    with pytest.raises(ValueError, match="'patches' or None, got 'x'"):
        patch_attention(torch.ones(4), slice(2, 4), "x")


def test_traits_left() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    assert count_traits(scores, torch.tensor([1.5, 0.0, 1.0])).tolist() == [1, 0, 3]


def test_maps_of_top_heads_add_up() -> None:
    maps = torch.arange(12.0).view(1, 3, 2, 2)
    assert_close(aggregate_heads(maps, torch.tensor([[2, 0, 1]]), 2), maps[:, 2] + maps[:, 0])
    assert_close(aggregate_heads(maps, torch.tensor([[2, 0, 1]]), 9), maps.sum(1))


def test_smoothed_maps_fill_the_range_and_keep_their_peak() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 2] = 0.3
    smoothed = smooth_maps(maps, (32, 32))
    assert smoothed[0, 0].min() == 0
    assert smoothed[0, 0].max() == 1
    row, column = divmod(int(smoothed[0, 0].argmax()), 32)
    assert (row // 8, column // 8) == (1, 2)
    assert not smoothed[0, 1].any()  # no contrast, no NaN
