"""The metrics for evaluate.load, and what their numbers are."""

import evaluate
import numpy as np
import pytest
import torch

from partial_tune import ClassPartition, group_accuracies, metric_path, seen_absent_sweep

PARTITION = ClassPartition(tuple("abcd"), (0, 2))
GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(40, 4)).astype(np.float32)
LABELS = GENERATOR.integers(0, 4, 40)


def test_area_is_loaded_offline_and_reduces_batches_at_once() -> None:
    metric = evaluate.load(metric_path("ausuc"), partition=PARTITION)
    for start in range(0, 40, 7):
        metric.add_batch(predictions=LOGITS[start : start + 7], references=LABELS[start : start + 7])
    assert metric.state.nbytes == 9 * 40
    found = metric.compute()
    expected = seen_absent_sweep(LOGITS, LABELS, PARTITION)
    assert found["ausuc"] == expected.ausuc
    assert found["absent"] == expected.at(0.0).absent
    assert found["overall_oracle"] == expected.at(expected.gamma_star).overall
    assert metric.compute(predictions=LOGITS.tolist(), references=LABELS.tolist())["ausuc"] == pytest.approx(
        expected.ausuc
    )
    metric.add(prediction=torch.tensor([3.0, 0, 0, 0]), reference=0)
    assert metric.compute() == {"seen": 1.0, "overall": 1.0}


def test_accuracy_is_loaded_offline() -> None:
    metric = evaluate.load(metric_path("seen_absent_accuracy"), partition=PARTITION)
    found = metric.compute(predictions=LOGITS.argmax(1), references=LABELS)
    expected = group_accuracies(LOGITS, LABELS, PARTITION)
    names = {"seen_accuracy": "S/Y", "absent_accuracy": "U/Y", "accuracy": "Y/Y", "harmonic_mean": "H"}
    assert found == {ours: pytest.approx(expected[theirs]) for ours, theirs in names.items()}
    assert metric.compute(predictions=LOGITS, references=LABELS) == found
    with pytest.raises(ValueError, match="logits of 4 classes"):
        metric.compute(predictions=LOGITS[:, :3], references=LABELS)
    one_group = metric.compute(predictions=[0, 1], references=[0, 2])
    assert one_group == {"seen_accuracy": 0.5, "absent_accuracy": None, "accuracy": 0.5, "harmonic_mean": None}


@pytest.mark.parametrize("name", ["ausuc", "seen_absent_accuracy"])
def test_metrics_need_a_partition(name: str) -> None:
    with pytest.raises(ValueError, match="Expected `partition`, a ClassPartition, got None"):
        evaluate.load(metric_path(name))


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="one of ausuc, seen_absent_accuracy"):
        metric_path("accuracy")
