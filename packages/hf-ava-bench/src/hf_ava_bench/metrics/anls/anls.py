"""Average normalised Levenshtein similarity of read text, higher is better."""

from typing import Any

import evaluate

from hf_ava_bench.evaluation import compute_metric, describe_metric


class ANLS(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Average normalised Levenshtein similarity of read text, higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric("Average normalised Levenshtein similarity of read text, higher is better.")

    def _compute(self, predictions: list[str | None], references: list[str], **options: Any) -> dict[str, Any]:
        return compute_metric("ocr", predictions, references, **options)
