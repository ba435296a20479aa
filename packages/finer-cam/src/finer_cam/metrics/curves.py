"""What deletion and insertion share: the area under the target's probability along the ranking of a map."""

from typing import ClassVar

import datasets
import evaluate
import torch

from finer_cam.measures import area_under_curve


class CurveArea(evaluate.Metric):  # type: ignore[misc]
    """The mean area under a curve over equal steps, as the result `key`."""

    key: ClassVar[str]
    description: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="RISE: Randomized Input Sampling for Explanation of Black-box Models, arXiv 1806.07421",
            inputs_description=(
                "predictions: for each image the probabilities at equal steps from fraction 0 to fraction 1, ends "
                "included."
            ),
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions: list[list[float]]) -> dict[str, float]:
        areas = [float(area_under_curve(torch.tensor(curve, dtype=torch.float64))) for curve in predictions]
        return {self.key: sum(areas) / len(areas)}
