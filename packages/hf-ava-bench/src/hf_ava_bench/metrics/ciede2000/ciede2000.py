"""Colour difference CIEDE2000 of sRGB colours, lower is better."""

from typing import Any

import evaluate

from hf_ava_bench.evaluation import compute_metric, describe_metric


class CIEDE2000(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Colour difference CIEDE2000 of sRGB colours, lower is better."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric("Colour difference CIEDE2000 of sRGB colours, lower is better.")

    def _compute(self, predictions: list[str | None], references: list[str], **options: Any) -> dict[str, Any]:
        return compute_metric("color", predictions, references, **options)
