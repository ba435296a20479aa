"""`evaluate` metric: answers to two-image comparisons with the images in both orders."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_compbench.extraction import extract_answer
from hf_compbench.functional import apply_swap, build_swap_map, compute_side_metrics, compute_swap_metrics

_DESCRIPTION = """Accuracy, pair accuracy (right in both image orders), consistency and side bias of answers to
two-image comparisons that were asked twice, the second time with the images exchanged."""

_INPUTS = """
Args:
    predictions (list of str): replies with the images in their own order, raw.
    references (list of str): texts of the right options for that order.
    swapped_predictions (list of str): replies with the images exchanged, raw.
    options (list of list of str): options of each question; those of the swapped question are the same.
    questions (list of str, optional): texts of the questions, for replies that compare in words.
Returns:
    dict: `accuracy`, `accuracy_first`, `accuracy_second`, `pair_accuracy`, `consistency`, `coverage`; where all
    questions have the options Left and Right also `bias`, `accuracy_left`, `accuracy_right`, `side_gap`. Fractions.
"""


class SwapConsistency(evaluate.Metric):  # type: ignore[misc]
    """Pair accuracy, consistency and side bias over both image orders."""

    def _info(self) -> evaluate.MetricInfo:
        string = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": string, "references": string}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        swapped_predictions: list[str],
        options: list[list[str]],
        questions: list[str] | None = None,
    ) -> dict[str, Any]:
        texts = [""] * len(predictions) if questions is None else questions
        given: dict[str, list[Any] | None] = {
            "swapped_predictions": swapped_predictions,
            "options": options,
            "questions": texts,
        }
        for name, values in given.items():
            if values is not None and len(values) != len(predictions):
                raise ValueError(f"Expected {len(predictions)} `{name}`, one for each prediction, got {len(values)}.")
        for reference, choices in zip(references, options, strict=True):
            if reference not in choices:
                raise ValueError(f"Expected the reference {reference!r} to be one of its options {choices}.")
        gold = np.array([list(c).index(r) for r, c in zip(references, options, strict=True)])
        first, second = (
            np.array([extract_answer(*asked).index for asked in zip(replies, options, texts, strict=True)])
            for replies in (predictions, swapped_predictions)
        )
        swap_maps = [build_swap_map(choices) for choices in options]
        result: dict[str, Any] = compute_swap_metrics(gold, first, second, apply_swap(second, swap_maps))
        result |= compute_side_metrics(options, gold, first, second)
        return result
