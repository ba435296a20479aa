"""Relative error of counts, `|p - g| / g`, lower is better."""

from typing import Any

import evaluate

from hf_ava_bench.evaluation import compute_metric, describe_metric


class CountingError(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Relative error of counts, `|p - g| / g`, lower is better."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric("Relative error of counts, `|p - g| / g`, lower is better.")

    def _compute(self, predictions: list[str | None], references: list[str], **options: Any) -> dict[str, Any]:
        return compute_metric("counting", predictions, references, **options)
