"""The sweep by hand, its operating points, intervals, streams, and what it refuses."""

import numpy as np
import pytest
import torch

from partial_tune import ClassPartition, SweepResult, SweepState, seen_absent_sweep
from partial_tune import functional as functional_module
from partial_tune.functional import reduce_logits

PARTITION = ClassPartition(("ant", "bee"), (0,))


def from_gaps(seen: list[float], absent: list[float]) -> SweepResult:
    """Two classes: an ant with gap d is right for gamma < d, a bee for gamma > d."""
    gaps = [*seen, *absent]
    logits = torch.tensor([[gap, 0.0] for gap in gaps], dtype=torch.float64)
    return seen_absent_sweep(logits, torch.tensor([0] * len(seen) + [1] * len(absent)), PARTITION)


def test_curve_by_hand() -> None:
    result = from_gaps([1, 3], [2])
    assert result.breakpoints.tolist() == [1, 2, 3]
    assert result.curve["gamma"].tolist() == [0, 1.5, 2.5, 4]
    assert result.curve["seen"].tolist() == [1, 0.5, 0.5, 0]
    assert result.curve["absent"].tolist() == [0, 0, 1, 1]
    assert result.ausuc == 0.5  # one of the two (ant, bee) pairs is in order
    assert result.factors == {"seen_seen": 1, "absent_absent": 1, "separability": 0.5}


def test_optimum_is_zero_if_zero_is_optimal_else_the_middle_of_the_widest_piece() -> None:
    assert from_gaps([2, 3], [-1]).gamma_star == 0
    assert from_gaps([-1, 3, 5], [-2, -4]).gamma_star == -1.5
    assert from_gaps([5, 9], [1, 2]).gamma_star == 3.5
    far = from_gaps([5, 9], [1, 2])
    assert far.intervals == [(2, 5)]
    assert from_gaps([3, 5], [4, 6]).intervals == [(-np.inf, 3), (4, 5), (6, np.inf)]
    assert from_gaps([3, 5], [4, 6]).gamma_star == 0
    assert from_gaps([-9, -7], [-8, -6, -5]).gamma_star == 0  # all absent from -5 on
    assert from_gaps([7, 9], [8, 10, 11]).gamma_star == 12


def test_operating_points_by_hand() -> None:
    result = from_gaps([1, 2, 3, 10], [0.5, 4, 5, 6])
    assert result.at(0.0).seen == 1
    drop = result.operating_point("max_seen_drop", 0.25)
    assert (drop.seen, drop.absent) == (1, 0.25)
    assert result.operating_point("max_seen_drop", 0.75).absent == 1
    balanced = result.operating_point("balanced")
    assert (balanced.seen, balanced.absent) == (0.25, 0.25)  # between 3 and 4
    bound = result.operating_point("constrained", 0.9)
    assert (bound.absent, bound.overall) == (1, 0.625)
    harmonic = result.operating_point("harmonic")
    assert harmonic.harmonic == pytest.approx(0.4)  # 1 and 1/4 between 0.5 and 1, or 1/4 and 1 between 6 and 10
    assert all(point.uses_absent_labels for point in (drop, balanced, bound, harmonic))
    assert not result.at(0.0).uses_absent_labels


def test_operating_points_that_make_no_sense_are_refused() -> None:
    result = from_gaps([1], [2])
    with pytest.raises(ValueError, match="one of overall, balanced"):
        result.operating_point("best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a `value`"):
        result.operating_point("constrained")
    with pytest.raises(ValueError, match="no `value`"):
        result.operating_point("overall", 0.5)
    with pytest.raises(ValueError, match="no offset reaches it"):
        result.operating_point("constrained", 1.1)
    with pytest.raises(ValueError, match="only one group"):
        from_gaps([1], []).operating_point("balanced")


def test_one_group_alone_has_a_curve_and_no_area() -> None:
    result = from_gaps([1, 2], [])
    assert result.ausuc is None
    assert result.factors is None
    assert result.curve["seen"].tolist() == [1, 0.5, 0]
    assert np.isnan(result.curve["absent"]).all()
    assert result.at(0.0).absent is None
    assert result.at(0.0).harmonic is None
    with pytest.raises(ValueError, match="only one group"):
        result.bootstrap()


def test_masked_groups_never_flip() -> None:
    logits = torch.tensor([[1.0, -torch.inf], [-torch.inf, 1.0], [2.0, 1.0], [0.0, 1.0]])
    result = seen_absent_sweep(logits, torch.tensor([0, 1, 0, 1]), PARTITION)
    assert result.breakpoints.tolist() == [-1, 1]
    assert result.curve["seen"].tolist() == [1, 1, 0.5]
    assert result.curve["absent"].tolist() == [0.5, 1, 1]
    assert result.factors is not None
    assert result.ausuc == pytest.approx(np.prod(list(result.factors.values())))
    wrong = seen_absent_sweep(torch.tensor([[1.0, -torch.inf], [0.0, 1.0]]), torch.tensor([1, 0]), PARTITION)
    assert wrong.factors == {"seen_seen": 1, "absent_absent": 0, "separability": 0}
    assert wrong.ausuc == 0


def test_predicted_absent_rate_needs_no_labels() -> None:
    result = from_gaps([1, 3], [2])
    assert [result.predicted_absent_rate(gamma) for gamma in (0.0, 1.5, 2.5, 4.0)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )
    assert result.predicted_absent_rate(1.0) == 0  # a tie goes to the lower id, which is seen


def test_bootstrap_covers_the_truth_and_is_seeded() -> None:
    generator = np.random.default_rng(0)
    result = from_gaps(generator.normal(1, 1, 300).tolist(), generator.normal(0, 1, 300).tolist())
    intervals = result.bootstrap(200, seed=3)
    low, high = intervals["ausuc"]
    assert low < result.ausuc < high
    assert 0.05 < high - low < 0.12  # 2 * 1.96 * 0.02, the standard error of an AUROC of 0.76 with 300 + 300 samples
    assert result.bootstrap(200, seed=3) == intervals
    assert result.bootstrap(200, seed=4) != intervals
    assert intervals["seen_seen"] == (1, 1)
    with pytest.raises(ValueError, match="`confidence` in"):
        result.bootstrap(confidence=1.0)


def test_bootstrap_chooses_the_best_offset_as_the_sweep_does() -> None:
    result = from_gaps([2, 3], [-1])  # all right from -1 to 2, in every resample
    assert result.gamma_star == 0
    assert result.bootstrap(20)["gamma_star"] == (0, 0)


@pytest.mark.slow
def test_fifty_thousand_samples_of_a_thousand_classes_leave_nine_bytes_each() -> None:
    """The size of the speed gate, whose time and memory the benchmark partial_tune_sweep measures."""
    count, classes = 50_000, 1_000
    partition = ClassPartition(tuple(map(str, range(classes))), tuple(range(classes // 2)))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 4
    state = SweepState(partition)
    state.update(logits, labels)
    assert state.nbytes == 9 * count
    result = state.result()
    for gamma in (-1.0, 0.0, 0.5):
        is_right = (logits.double() + gamma * partition.absent_mask).argmax(dim=1) == labels
        assert result.at(gamma).overall == float(is_right.double().mean())
    assert result.ausuc == pytest.approx(np.prod(list((result.factors or {}).values())), abs=1e-12)


def test_merge_is_concatenation() -> None:
    one, other, both = SweepState(PARTITION), SweepState(PARTITION), SweepState(PARTITION)
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, 0.0]])
    one.update(first, torch.tensor([0, 1]))
    other.update(second, torch.tensor([1]))
    both.update(torch.cat([first, second]), torch.tensor([0, 1, 1]))
    assert len(one.merge(other)) == 3
    assert one.merge(other).result().to_dict() == both.result().to_dict()
    with pytest.raises(ValueError, match="same partition"):
        one.merge(SweepState(ClassPartition(("ant", "bee"), (1,))))


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (torch.zeros(2, 3), [0, 1], ValueError, r"\(N, 2\), one column for each class"),
        (torch.zeros(2, 2, dtype=torch.long), [0, 1], TypeError, "floating-point `logits`, got torch.int64"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), [0, 1], ValueError, "nan as the maximum of row 1"),
        (torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), [0, 1], ValueError, "inf as the maximum of row 0"),
        (torch.tensor([[-torch.inf, -torch.inf]]), [0], ValueError, "finite value in each row, got -inf"),
        (torch.zeros(2, 2), [0], ValueError, "Expected 2 `labels`"),
        (torch.zeros(2, 2), [0, 2], ValueError, "from 0 to 1, got 2 in row 1"),
        (torch.zeros(2, 2), [0.0, 1.0], TypeError, "integer `labels`, got torch.float32"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(
    logits: torch.Tensor, labels: list[float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        seen_absent_sweep(logits, torch.tensor(labels), PARTITION)


def test_no_samples_and_remaining_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        SweepState(PARTITION).result()
    with pytest.raises(ValueError, match="1 of 3 are neither"):
        SweepState(ClassPartition(("ant", "bee", "cat"), (0,), (1,)))


def test_chunks_do_not_change_the_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, generator=generator), torch.randint(6, (50,), generator=generator)
    mask = torch.tensor([True, False, True, False, False, True])
    whole = reduce_logits(logits, labels, mask)
    monkeypatch.setattr(functional_module, "MAX_CHUNK_ELEMENTS", 42)
    for one, other in zip(whole, reduce_logits(logits, labels, mask), strict=True):
        assert torch.equal(one, other)


def test_summary_is_json_ready_and_loud_about_absent_labels() -> None:
    summary = from_gaps([1, 3], [2]).to_dict(gammas=[0.0, 2.5])
    assert summary["at"][1] == {
        "gamma": 2.5,
        "seen": 0.5,
        "absent": 1.0,
        "overall": pytest.approx(2 / 3),
        "harmonic": pytest.approx(2 / 3),
        "uses_absent_labels": False,
    }
    assert summary["at_gamma_star"]["uses_absent_labels"] is True
