"""What must hold for the sweep of any logits, against brute force and under symmetries."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from partial_tune import ClassPartition, SweepState, group_accuracies, seen_absent_sweep
from partial_tune.functional import reduce_logits, sweep_curve_by_loop

SEEDS = st.integers(0, 10_000)
Problem = tuple[torch.Tensor, torch.Tensor, ClassPartition]


def draw_problem(seed: int, *, ties: bool = False) -> Problem:
    """Up to 80 samples of up to 8 classes, with samples of both groups; with ties, multiples of one half."""
    generator = np.random.default_rng(seed)
    num_classes = int(generator.integers(2, 9))
    count = int(generator.integers(2, 81))
    logits = generator.normal(size=(count, num_classes)) * 2
    logits = np.round(logits * 2) / 2 if ties else logits
    order = generator.permutation(num_classes).tolist()
    partition = ClassPartition(tuple(map(str, range(num_classes))), order[: int(generator.integers(1, num_classes))])
    labels = generator.integers(0, num_classes, size=count)
    labels[0], labels[1] = partition.seen[0], partition.absent[0]
    return torch.tensor(logits), torch.tensor(labels), partition


@given(SEEDS, st.booleans())
def test_every_piece_equals_argmax_after_adding_gamma(seed: int, ties: bool) -> None:
    logits, labels, partition = draw_problem(seed, ties=ties)
    result = seen_absent_sweep(logits, labels, partition)
    reference = sweep_curve_by_loop(logits, labels, partition.absent_mask)
    np.testing.assert_array_equal(result.breakpoints, reference.breakpoints)
    np.testing.assert_array_equal(result.curve["seen"], reference.seen_hits / result.num_seen)
    np.testing.assert_array_equal(result.curve["absent"], reference.absent_hits / result.num_absent)


@given(SEEDS, st.booleans(), st.sampled_from([0.0, 0.5, -1.0, 0.3]))
def test_point_at_gamma_equals_the_accuracies_with_gamma_also_on_breakpoints(
    seed: int, ties: bool, gamma: float
) -> None:
    logits, labels, partition = draw_problem(seed, ties=ties)
    point = seen_absent_sweep(logits, labels, partition).at(gamma)
    expected = group_accuracies(logits, labels, partition, gamma=gamma)
    assert (point.seen, point.absent, point.overall) == (expected["S/Y"], expected["U/Y"], expected["Y/Y"])
    assert point.harmonic == pytest.approx(expected["H"])


@given(SEEDS, st.booleans())
def test_curve_is_monotone_and_ends_in_the_accuracies_within_groups(seed: int, ties: bool) -> None:
    logits, labels, partition = draw_problem(seed, ties=ties)
    curve = seen_absent_sweep(logits, labels, partition).curve
    within = group_accuracies(logits, labels, partition)
    assert (np.diff(curve["gamma"]) > 0).all()
    assert (np.diff(curve["seen"]) <= 0).all()
    assert (np.diff(curve["absent"]) >= 0).all()
    assert (curve["seen"][0], curve["absent"][0]) == (within["S/S"], 0)
    assert (curve["seen"][-1], curve["absent"][-1]) == (0, within["U/U"])


@given(SEEDS, st.booleans())
def test_two_ways_to_the_area_agree(seed: int, ties: bool) -> None:
    result = seen_absent_sweep(*draw_problem(seed, ties=ties))
    assert result.factors is not None
    assert result.ausuc == pytest.approx(np.prod(list(result.factors.values())), abs=1e-12)


@given(SEEDS)
def test_area_ignores_row_shifts_sample_order_and_class_order(seed: int) -> None:
    logits, labels, partition = draw_problem(seed)
    generator = torch.Generator().manual_seed(seed)
    expected = seen_absent_sweep(logits, labels, partition)
    shifts = torch.randn(len(logits), 1, generator=generator, dtype=logits.dtype)
    assert seen_absent_sweep(logits + shifts, labels, partition).ausuc == pytest.approx(expected.ausuc, abs=1e-9)
    order = torch.randperm(len(logits), generator=generator)
    assert seen_absent_sweep(logits[order], labels[order], partition).ausuc == expected.ausuc
    classes = torch.randperm(partition.num_classes, generator=generator)  # new id -> old id
    moved = ClassPartition.from_mask(partition.num_classes, partition.absent_mask[classes].numpy())
    permuted = seen_absent_sweep(logits[:, classes], classes.argsort()[labels], moved)
    np.testing.assert_array_equal(permuted.curve["seen"], expected.curve["seen"])
    np.testing.assert_array_equal(permuted.curve["absent"], expected.curve["absent"])


@given(SEEDS, st.sampled_from([0.25, 4.0]))
def test_scaling_logits_scales_gamma_and_keeps_the_area(seed: int, factor: float) -> None:
    logits, labels, partition = draw_problem(seed)
    one, other = (seen_absent_sweep(values, labels, partition) for values in (logits, factor * logits))
    assert other.ausuc == one.ausuc
    np.testing.assert_allclose(other.breakpoints, factor * one.breakpoints)


@given(SEEDS)
def test_swapping_seen_and_absent_mirrors_the_curve(seed: int) -> None:
    logits, labels, partition = draw_problem(seed)
    swapped = ClassPartition(partition.names, partition.absent, partition.seen)
    one, other = (seen_absent_sweep(logits, labels, groups) for groups in (partition, swapped))
    np.testing.assert_array_equal(other.curve["seen"], one.curve["absent"][::-1])
    np.testing.assert_array_equal(other.breakpoints, -one.breakpoints[::-1])
    assert other.ausuc == pytest.approx(one.ausuc, abs=1e-12)


@given(SEEDS, st.floats(-5, 5))
def test_an_offset_that_is_there_already_moves_the_optimum_back(seed: int, offset: float) -> None:
    logits, labels, partition = draw_problem(seed)
    shifted = logits + offset * partition.absent_mask.double()
    one, other = (seen_absent_sweep(values, labels, partition) for values in (logits, shifted))
    np.testing.assert_allclose(other.breakpoints, one.breakpoints - offset, atol=1e-9)
    assert other.at(one.gamma_star - offset).overall == pytest.approx(one.at(one.gamma_star).overall)


@given(SEEDS, st.integers(1, 20))
def test_any_batches_give_the_bits_of_one_batch(seed: int, size: int) -> None:
    logits, labels, partition = draw_problem(seed)
    state = SweepState(partition)
    for start in range(0, len(logits), size):
        state.update(logits[start : start + size].numpy(), labels[start : start + size].numpy())
    whole = seen_absent_sweep(logits, labels, partition)
    for name in ("gap", "seen_correct", "absent_correct", "is_absent", "seen_first"):
        np.testing.assert_array_equal(getattr(state.result(), name), getattr(whole, name))
    assert state.result().ausuc == whole.ausuc
    assert state.nbytes == 9 * len(logits)


@given(SEEDS, st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_half_precision_is_widened_before_the_difference(seed: int, dtype: torch.dtype) -> None:
    logits, labels, partition = draw_problem(seed)
    narrow = logits.to(dtype)
    reduced = reduce_logits(narrow, labels, partition.absent_mask)
    wide = reduce_logits(narrow.double(), labels, partition.absent_mask)
    assert all(torch.equal(a, b) for a, b in zip(reduced, wide, strict=True))


@given(SEEDS)
def test_optimal_offsets_are_optimal(seed: int) -> None:
    result = seen_absent_sweep(*draw_problem(seed, ties=True))
    best = result.curve["overall"].max()
    if result.at(0.0).overall == best and 0 not in result.breakpoints:
        assert result.gamma_star == 0
    assert result.at(result.gamma_star).overall == best
    for low, high in result.intervals:
        inside = (result.curve["gamma"] > low) & (result.curve["gamma"] < high)
        assert (result.curve["overall"][inside] == best).all()
    assert sum(result.curve["overall"] == best) >= len(result.intervals)
