"""Accuracy of the nine abilities that name a class; pass the ability as config_name."""

from typing import Any

import evaluate

from hf_ava_bench.evaluation import compute_metric, describe_metric, find_config


class AbilityAccuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Accuracy of the nine abilities that name a class; pass the ability as config_name."""

    def _info(self) -> evaluate.MetricInfo:
        find_config(self.config_name, classes_only=True)
        return describe_metric("Accuracy of the nine abilities that name a class; pass the ability as config_name.")

    def _compute(self, predictions: list[str | None], references: list[str], **options: Any) -> dict[str, Any]:
        ability = find_config(self.config_name, classes_only=True)
        return compute_metric(ability, predictions, references, **options)
