"""Generalized intersection over union of boxes, higher is better."""

from typing import Any

import evaluate

from hf_ava_bench.evaluation import compute_metric, describe_metric


class GIoU(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Generalized intersection over union of boxes, higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric("Generalized intersection over union of boxes, higher is better.")

    def _compute(self, predictions: list[str | None], references: list[str], **options: Any) -> dict[str, Any]:
        return compute_metric("localization", predictions, references, **options)
