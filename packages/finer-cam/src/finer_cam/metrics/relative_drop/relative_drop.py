"""Relative drop for `evaluate.load`: how much more the target's probability falls than its look-alike's."""

import datasets
import evaluate
import torch

from finer_cam.measures import relative_drop

DESCRIPTION = "(p_c - p*_c) - (p_d - p*_d) when the highest pixels of a map are masked (Finer-CAM, arXiv 2501.11309)."
INPUTS = "references: for each image the probabilities of target and look-alike; predictions: on the masked image."


class RelativeDrop(evaluate.Metric):  # type: ignore[misc]
    """Relative drop: higher is better."""

    def _info(self) -> evaluate.MetricInfo:
        pair = datasets.Sequence(datasets.Value("float64"), length=2)
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation (2501.11309)",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": pair, "references": pair}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        before, after = (torch.tensor(list(pairs), dtype=torch.float64) for pairs in (references, predictions))
        target_drop, reference_drop = (before - after).mean(dim=0).tolist()
        return {
            "relative_drop": float(relative_drop(before, after).mean()),
            "target_drop": target_drop,
            "reference_drop": reference_drop,
        }
