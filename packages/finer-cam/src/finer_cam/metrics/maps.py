"""What energy in a region and the pointing game share: maps as predictions, masks as references."""

from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import evaluate
import torch
from torch import Tensor


class MapScore(evaluate.Metric):  # type: ignore[misc]
    """The mean over images of `score(map, mask)`, as the result `key`."""

    key: ClassVar[str]
    description: ClassVar[str]
    citation: ClassVar[str]
    score: Callable[..., Tensor]

    def _info(self) -> evaluate.MetricInfo:
        image = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description="predictions: a map (H x W) for each image; references: a mask of the same size, above "
            "0 inside.",
            features=datasets.Features({"predictions": image, "references": image}),
        )

    def _compute(
        self, predictions: list[list[list[float]]], references: list[list[list[float]]], **options: Any
    ) -> dict[str, float]:
        pairs = [
            (torch.tensor(one, dtype=torch.float64), torch.tensor(mask))
            for one, mask in zip(predictions, references, strict=True)
        ]
        scores = [float(self.score(one, mask, **options)) for one, mask in pairs]
        return {self.key: sum(scores) / len(scores)}
