"""Insertion for `evaluate.load`: the area under the target's probability along the ranking of a map."""

import datasets
import evaluate
import torch

from finer_cam.measures import area_under_curve

DESCRIPTION = (
    "Area under the target's probability while the highest pixels of a map are put into a blurred image first "
    "(RISE, arXiv 1806.07421); higher is better."
)
INPUTS = "predictions: for each image the probabilities at equal steps from fraction 0 to fraction 1, ends included."


class Insertion(evaluate.Metric):  # type: ignore[misc]
    """Insertion: higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="RISE: Randomized Input Sampling for Explanation of Black-box Models, arXiv 1806.07421",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions: list[list[float]]) -> dict[str, float]:
        areas = [float(area_under_curve(torch.tensor(curve, dtype=torch.float64))) for curve in predictions]
        return {"insertion": sum(areas) / len(areas)}
