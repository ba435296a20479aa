"""Accuracies of seen and absent classes, among all classes, from predicted class ids."""

from typing import Any

import datasets
import evaluate
import numpy as np

from partial_tune.partition import ClassPartition

DESCRIPTION = "Accuracy on samples of seen classes, on samples of absent classes, on all, and the harmonic mean."
CITATION = "Mai et al., Fine-Tuning is Fine, if Calibrated, NeurIPS 2024, arXiv 2409.16223."
INPUTS = """
Args:
    predictions: predicted class ids, chosen among all classes.
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
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        is_right = np.asarray(predictions) == np.asarray(references)
        rows = {
            "seen_accuracy": np.isin(references, self.partition.seen),
            "absent_accuracy": np.isin(references, self.partition.absent),
            "accuracy": np.ones(len(is_right), dtype=bool),
        }
        found: dict[str, float | None] = {
            name: float(is_right[mask].mean()) if mask.any() else None for name, mask in rows.items()
        }
        seen, absent = found["seen_accuracy"], found["absent_accuracy"]
        known = seen is not None and absent is not None
        total = (seen or 0.0) + (absent or 0.0)
        found["harmonic_mean"] = (2 * (seen or 0.0) * (absent or 0.0) / total if total else 0.0) if known else None
        return found
