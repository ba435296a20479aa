"""Accuracies of seen and absent classes, among all classes, from predicted class ids or from logits."""

from typing import Any

import datasets
import evaluate
import numpy as np

from partial_tune.accuracy import harmonic_or_none
from partial_tune.partition import ClassPartition

DESCRIPTION = "Accuracy on samples of seen classes, on samples of absent classes, on all, and the harmonic mean."
CITATION = "Mai et al., Fine-Tuning is Fine, if Calibrated, NeurIPS 2024, arXiv 2409.16223."
INPUTS = """
Args:
    predictions: predicted class ids, chosen among all classes; or logits of all classes, one row for each sample.
    references: class ids.
"""


class SeenAbsentAccuracy(evaluate.Metric):  # type: ignore[misc]
    """Accuracy by group. Micro averages; None for a group without samples.

    Args:
        partition (`ClassPartition`): seen and absent classes, given to `evaluate.load`.
    """

    def __init__(self, *args: Any, partition: ClassPartition | None = None, **kwargs: Any) -> None:
        if not isinstance(partition, ClassPartition):
            raise ValueError(
                f"Expected `partition`, a ClassPartition, got {partition!r}; call "
                '`evaluate.load(metric_path("seen_absent_accuracy"), partition=...)`.'
            )
        super().__init__(*args, **kwargs)
        self.partition = partition

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        logits = datasets.Sequence(datasets.Value("float32"))
        kinds = [{"predictions": kind, "references": ids} for kind in (logits, ids)]
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[datasets.Features(kind) for kind in kinds],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        predictions = np.asarray(predictions)
        if predictions.ndim == 2:  # logits
            if predictions.shape[1] != self.partition.num_classes:
                raise ValueError(
                    f"Expected logits of {self.partition.num_classes} classes, got shape {predictions.shape}."
                )
            predictions = predictions.argmax(axis=1)
        is_right = predictions == np.asarray(references)
        rows = {
            "seen_accuracy": np.isin(references, self.partition.seen),
            "absent_accuracy": np.isin(references, self.partition.absent),
            "accuracy": np.ones(len(is_right), dtype=bool),
        }
        found: dict[str, float | None] = {
            name: float(is_right[mask].mean()) if mask.any() else None for name, mask in rows.items()
        }
        found["harmonic_mean"] = harmonic_or_none(found["seen_accuracy"], found["absent_accuracy"])
        return found
