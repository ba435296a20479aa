"""Energy in a region for `evaluate.load`: the share of a map that lies in a mask."""

import datasets
import evaluate
import torch

from finer_cam.measures import energy_in_region

DESCRIPTION = "The share of a map that lies in a region."
INPUTS = "predictions: a map (H x W) for each image; references: a mask of the same size, above 0 inside."


class EnergyInRegion(evaluate.Metric):  # type: ignore[misc]
    """Energy in a region: higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation (2501.11309)",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": image, "references": image}),
        )

    def _compute(self, predictions: list[list[list[float]]], references: list[list[list[float]]]) -> dict[str, float]:
        scores = [
            float(energy_in_region(torch.tensor(one), torch.tensor(mask)))
            for one, mask in zip(predictions, references, strict=True)
        ]
        return {"energy_in_region": sum(scores) / len(scores)}
