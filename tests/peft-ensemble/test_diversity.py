"""Agreement and error overlap on hand-made predictions, and against scikit-learn."""

import math

import pytest
import torch

from peft_ensemble.diversity import (
    agreement_matrix,
    confident_overlap,
    js_divergence,
    measure_diversity,
    pair_measures,
)


def test_measures_of_a_pair_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    first = torch.tensor([0, 0, 0, 1, 1, 0, 1, 0])  # right: 1 1 1 0 1 0 0 0
    second = torch.tensor([0, 0, 1, 0, 1, 0, 1, 1])  # right: 1 1 0 1 1 0 0 0
    measures = pair_measures(first, second, labels)
    assert measures["agreement"] == 5 / 8
    assert measures["normalised_agreement"] == 5 / 8  # accuracies 1/2 and 1/2: least 0, most 1
    assert measures["double_fault"] == 3 / 8
    assert measures["same_wrong"] == pytest.approx(2 / 3)
    assert measures["yule_q"] == pytest.approx((3 * 3 - 1) / (3 * 3 + 1))
    assert measures["error_correlation"] == pytest.approx(0.5)
    metrics = pytest.importorskip("sklearn.metrics")
    assert measures["kappa"] == pytest.approx(metrics.cohen_kappa_score(first.numpy(), second.numpy()))


def test_equal_perfect_members():
    labels = torch.tensor([0, 1])
    measures = pair_measures(labels, labels, labels)
    assert (measures["agreement"], measures["normalised_agreement"], measures["double_fault"]) == (1, 1, 0)
    assert all(math.isnan(measures[key]) for key in ("same_wrong", "yule_q", "error_correlation"))


def test_agreement_matrix_is_symmetric_with_ones():
    predictions = torch.randint(3, (4, 30), generator=torch.Generator().manual_seed(0))
    matrix = agreement_matrix(predictions)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(4, dtype=torch.float64))


def test_confident_overlap_counts_right_ones_only():
    logits = torch.tensor([[[9.0, 0], [5, 0], [1, 0], [1, 0]], [[1.0, 0], [9, 0], [5, 0], [1, 0]]])
    overlap = confident_overlap(logits, torch.tensor([0, 0, 1, 0]), fraction=0.5)
    # Confident: images 0, 1 and images 1, 2; image 2 is wrong.
    expected = {"jaccard": 0.5, "single_coverage": 0.375, "union_coverage": 0.5}
    assert {key: overlap[key] for key in expected} == expected
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        confident_overlap(logits, torch.zeros(4, dtype=torch.long), fraction=0)


def test_report_shows_the_gain_of_members_that_err_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=generator)
    logits = 2 * torch.nn.functional.one_hot(labels, 4) + 1.5 * torch.randn(3, 400, 4, generator=generator)
    report = measure_diversity(logits, labels, ["a", "b", "c"])
    same = measure_diversity(logits[:1].expand(3, -1, -1), labels, ["a", "a", "a"])
    value, low, high = report.gain["mean_logits"]["mean"]
    assert 0 < low < value < high
    assert value == pytest.approx(report.ensembles["mean_logits"] - sum(report.accuracies) / 3)
    assert same.gain["mean_logits"]["best"] == (0, 0, 0)
    assert same.pairs["agreement"] == 1
    assert report.ensembles["oracle"] >= max(report.ensembles.values())
    assert "mean agreement" in str(report)
    assert report.to_dict()["names"] == ["a", "b", "c"]
    assert measure_diversity(logits, labels, ["a", "b", "c"]).gain == report.gain


def test_unsure_overlap_counts_wrong_ones_only():
    logits = torch.tensor([[[9.0, 0], [5, 0], [1, 0], [2, 0]], [[9.0, 0], [1, 0], [2, 0], [5, 0]]])
    # Least confident: images 2, 3 and images 1, 2; wrong among them: 2 and 1, 2.
    overlap = confident_overlap(logits, torch.tensor([0, 1, 1, 0]), fraction=0.5)
    assert overlap["unsure_jaccard"] == 0.5


def test_js_divergence_by_hand():
    first, second = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    entropy = lambda p: -sum(x * math.log(x) for x in p if x)  # noqa: E731
    expected = entropy([0.75, 0.25]) - (entropy([0.5, 0.5]) + 0) / 2
    assert js_divergence(torch.stack([first, second])) == pytest.approx(expected)
    assert js_divergence(torch.stack([first, second, first])) == pytest.approx(2 / 3 * expected)


def test_control_of_seeds_and_fitted_combinations_are_in_the_report():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (300,), generator=generator)
    signal = 2 * torch.nn.functional.one_hot(labels, 4)
    apart = signal + 1.5 * torch.randn(3, 300, 4, generator=generator)
    alike = (
        signal + 1.5 * torch.randn(1, 300, 4, generator=generator) + 0.2 * torch.randn(3, 300, 4, generator=generator)
    )
    held_out = (apart[:, :100], labels[:100])
    report = measure_diversity(apart, labels, list("abc"), control=alike, held_out=held_out)
    value, low, high = report.gain["mean_probs"]["control"]
    assert 0 < low < value < high
    assert value == pytest.approx(report.ensembles["mean_probs"] - report.control["mean_probs"])
    assert report.control["agreement"] > report.pairs["agreement"]
    assert {"calibrated_probs", "weighted_probs", "greedy"} < set(report.ensembles)
    assert "over the control" in str(report)
    assert "control agreement" in str(report)
    assert measure_diversity(apart, labels, list("abc")).control == {}
