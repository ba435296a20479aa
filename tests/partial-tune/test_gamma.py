"""ALG, pseudo cross-validation, prior matching and the oracle."""

import logging

import numpy as np
import pytest
import torch

from partial_tune import ClassPartition, GammaEstimate, SweepState, average_logit_gap
from partial_tune.gamma import (
    GapCollector,
    PseudoSplit,
    choose_by_oracle,
    combine_splits,
    draw_pseudo_partition,
    hold_out,
    match_absent_rate,
)

PARTITION = ClassPartition(tuple("abcdef"), (0, 2, 3))


def gaps_of(logits: torch.Tensor) -> np.ndarray:
    return (logits[:, [0, 2, 3]].amax(1).double() - logits[:, [1, 4, 5]].amax(1).double()).numpy()


def test_gap_leaves_the_label_out_and_reports_its_spread() -> None:
    logits = torch.tensor([[9.0, -1, 1, 3, -2, -3], [0, 0, 9, 4, 0, 0]])
    estimate = average_logit_gap(logits, torch.tensor([0, 2]), PARTITION)
    assert estimate.gamma == 3.0  # means of (1 + 3) / 2 + 2 and (0 + 4) / 2 - 0
    assert (estimate.std, estimate.num_samples) == (1.0, 2)
    assert estimate.details == {"per_class": {"a": 4.0, "c": 2.0}}


def test_gap_is_that_of_a_per_sample_loop_for_any_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 6, generator=generator)
    labels = torch.tensor(PARTITION.seen)[torch.randint(3, (40,), generator=generator)]
    expected = np.mean(
        [
            np.mean([float(row[c]) for c in PARTITION.seen if c != int(y)])
            - np.mean([float(row[c]) for c in (1, 4, 5)])
            for row, y in zip(logits, labels, strict=True)
        ]
    )
    collector = GapCollector(PARTITION)
    for start in range(0, 40, 7):
        collector.update(logits[start : start + 7], labels[start : start + 7])
    assert collector.estimate().gamma == pytest.approx(expected, abs=1e-12)
    assert collector.estimate().gamma == average_logit_gap(logits, labels, PARTITION).gamma


def test_gap_needs_two_seen_classes_seen_samples_and_finite_logits() -> None:
    one = ClassPartition(("a", "b"), (0,))
    with pytest.raises(ValueError, match="at least two seen classes"):
        average_logit_gap(torch.zeros(1, 2), torch.tensor([0]), one)
    with pytest.raises(ValueError, match=r"'b' in row 1.* not on the test set"):
        average_logit_gap(torch.zeros(2, 6), torch.tensor([0, 1]), PARTITION)
    assert average_logit_gap(torch.zeros(2, 6), torch.tensor([0, 1]), PARTITION, strict=False).gamma == 0
    masked = torch.tensor([[0.0, 0, 0, 0, 0, -torch.inf]])
    with pytest.raises(ValueError, match="masked class"):
        average_logit_gap(masked, torch.tensor([0]), PARTITION)
    with pytest.raises(ValueError, match="at least one fine-tuning sample"):
        GapCollector(PARTITION).estimate()


@pytest.mark.parametrize("prior", [0.0, 0.25, 0.5, 0.77, 1.0])
def test_prior_is_the_share_of_absent_predictions(prior: float) -> None:
    logits = torch.randn(200, 6, generator=torch.Generator().manual_seed(2))
    gamma = match_absent_rate(gaps_of(logits), prior).gamma
    shifted = logits.double() + gamma * PARTITION.absent_mask
    share = PARTITION.absent_mask[shifted.argmax(dim=1)].double().mean()
    assert float(share) == round(prior * 200) / 200
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        match_absent_rate(gaps_of(logits), 1.5)


@pytest.mark.parametrize(("prior", "gamma"), [(0.0, 0.0), (0.2, 0.0), (0.4, 2.0), (0.6, 4.0), (1.0, 4.0)])
def test_samples_that_never_flip_count_and_leave_the_offset_finite(prior: float, gamma: float) -> None:
    gaps = np.array([np.inf, 1.0, 3.0, -np.inf, np.inf])  # one of five is always absent, two never are
    assert match_absent_rate(gaps, prior).gamma == gamma
    with pytest.raises(ValueError, match="got none among 2"):
        match_absent_rate(np.array([np.inf, -np.inf]), prior)


def test_oracle_is_loud_and_refuses_seen_samples_alone(caplog: pytest.LogCaptureFixture) -> None:
    state = SweepState(ClassPartition(("a", "b"), (0,)))
    state.update(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="only ever suppresses"):
        choose_by_oracle(state, "overall", None)
    state.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    with caplog.at_level(logging.WARNING):
        estimate = choose_by_oracle(state, "overall", None)
    assert (estimate.gamma, estimate.uses_absent_labels) == (1.5, True)
    assert "an oracle, not a fair result" in caplog.text


def test_pseudo_partitions_halve_the_seen_classes_and_are_seeded() -> None:
    wide = ClassPartition(tuple("abcdefgh"), (0, 1, 2, 3, 4))
    draws = [draw_pseudo_partition(wide, split, seed=0) for split in range(8)]
    for pseudo, absent in draws:
        assert len(pseudo.seen) == 3
        assert sorted([*pseudo.seen, *absent]) == list(wide.seen)
        assert set(pseudo.absent) == set(absent) | set(wide.absent)
    assert len({pseudo.seen for pseudo, _ in draws}) > 1
    assert draw_pseudo_partition(wide, 3, seed=0) == draws[3]
    with pytest.raises(ValueError, match="at least 4 seen classes"):
        draw_pseudo_partition(PARTITION, 0, 0)


def test_holding_out_takes_thirty_percent_of_each_class() -> None:
    labels = np.array([0] * 10 + [1] * 20 + [2] * 5)
    train, held = hold_out(labels, (0, 1), split=0, seed=0)
    assert sorted(train + held) == list(range(30))
    assert np.bincount(labels[held]).tolist() == [3, 6]
    assert hold_out(labels, (0, 1), split=1, seed=0) != (train, held)
    with pytest.raises(ValueError, match="at least two samples"):
        hold_out(np.array([0, 1, 1]), (0, 1), split=0, seed=0)


ALG = GammaEstimate(gamma=6.0, method="alg", num_samples=10, std=1.0)


def split(gamma: float, alg: float) -> PseudoSplit:
    return PseudoSplit(seen=(0, 1), gamma=gamma, alg=alg)


def test_ratio_transfers_to_the_real_gap_and_raw_does_not() -> None:
    splits = [split(10, 8), split(12, 8)]
    ratio, raw = combine_splits(splits, ALG, ratio=True), combine_splits(splits, ALG, ratio=False)
    assert (ratio.gamma, ratio.method) == (6 * (1.25 + 1.5) / 2, "pcv_ratio")
    assert (raw.gamma, raw.method) == (11, "pcv")
    assert ratio.details["splits"][1] == {"seen": [0, 1], "gamma": 12, "alg": 8}


@pytest.mark.parametrize(
    ("splits", "reason"),
    [([], "no split"), ([split(3, -1)], "no positive logit gap"), ([split(50, 2), split(1, 2)], "outside of")],
)
def test_ratio_that_cannot_be_trusted_falls_back_to_the_gap(
    splits: list[PseudoSplit], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    estimate = combine_splits(splits, ALG, ratio=True)
    assert (estimate.gamma, estimate.method) == (6.0, "alg")
    assert reason in estimate.details["fallback"]
    assert "falls back to ALG" in caplog.text


@pytest.mark.parametrize("gamma", [-0.5, 0.0])
def test_gap_that_is_not_positive_is_replaced_by_the_offsets_of_the_splits(
    gamma: float, caplog: pytest.LogCaptureFixture
) -> None:
    alg = GammaEstimate(gamma=gamma, method="alg", num_samples=10, std=1.0)
    estimate = combine_splits([split(3, 2), split(5, -1)], alg, ratio=True)
    assert (estimate.gamma, estimate.method) == (4.0, "pcv")
    assert "a ratio keeps its sign" in estimate.details["fallback"]
    assert "falls back to PCV (gamma 4)" in caplog.text
