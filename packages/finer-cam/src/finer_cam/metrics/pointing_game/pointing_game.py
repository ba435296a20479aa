"""Pointing game for `evaluate.load`: how often the highest pixel of a map lies in a mask."""

import datasets
import evaluate
import torch

from finer_cam.measures import pointing_game

DESCRIPTION = "How often the highest pixel of a map lies in a region (arXiv 1608.00507)."
INPUTS = "predictions: a map (H x W) for each image; references: a mask of the same size, above 0 inside."


class PointingGame(evaluate.Metric):  # type: ignore[misc]
    """Pointing game: higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Top-down Neural Attention by Excitation Backprop, arXiv 1608.00507",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": image, "references": image}),
        )

    def _compute(
        self, predictions: list[list[list[float]]], references: list[list[list[float]]], tolerance: int = 0
    ) -> dict[str, float]:
        scores = [
            float(pointing_game(torch.tensor(one), torch.tensor(mask), tolerance))
            for one, mask in zip(predictions, references, strict=True)
        ]
        return {"pointing_game": sum(scores) / len(scores)}
