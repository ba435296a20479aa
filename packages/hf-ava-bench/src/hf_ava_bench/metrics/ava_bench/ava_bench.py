"""The headline metric of any of the 14 abilities; pass the ability as config_name."""

from typing import Any

import evaluate

from hf_ava_bench.evaluation import compute_metric, describe_metric, find_config


class AvaBench(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """The headline metric of any of the 14 abilities; pass the ability as config_name."""

    def _info(self) -> evaluate.MetricInfo:
        find_config(self.config_name, classes_only=False)
        return describe_metric("The headline metric of any of the 14 abilities; pass the ability as config_name.")

    def _compute(self, predictions: list[str | None], references: list[str], **options: Any) -> dict[str, Any]:
        ability = find_config(self.config_name, classes_only=False)
        return compute_metric(ability, predictions, references, **options)
