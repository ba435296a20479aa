"""One scorer for each form of answer: predictions and references in, one value for each item out."""

from collections.abc import Callable, Mapping

from hf_ava_bench.scorers.base import Items, Scored
from hf_ava_bench.scorers.boxes import score_boxes
from hf_ava_bench.scorers.classes import score_classes
from hf_ava_bench.scorers.colors import score_colors
from hf_ava_bench.scorers.numbers import score_numbers
from hf_ava_bench.scorers.texts import score_texts

SCORERS: Mapping[str, Callable[[Items], Scored]] = {
    "number": score_numbers,
    "box": score_boxes,
    "rgb": score_colors,
    "text": score_texts,
    "class": score_classes,
}
"""Form of an answer -> its scorer."""

__all__ = ["SCORERS", "Items", "Scored"]
