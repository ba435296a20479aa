"""AUSUC: the area under the curve of seen against absent accuracy, over all offsets of the absent classes' logits."""

from typing import Any

import datasets
import evaluate
import numpy as np

from partial_tune.evaluation import summarise
from partial_tune.partition import ClassPartition
from partial_tune.sweep import SweepState

DESCRIPTION = "Area under the curve of seen against absent accuracy: how good a classifier can be with one offset."
CITATION = (
    "Chao et al., An Empirical Study and Analysis of Generalized Zero-Shot Learning, ECCV 2016, arXiv 1605.04253."
)
INPUTS = """
Args:
    predictions: logits of all classes, one row for each sample.
    references: class ids.
"""


class Ausuc(evaluate.Metric):  # type: ignore[misc]
    """Reduces each batch to four numbers a sample when it is added; holds no logits.

    Args:
        partition (`ClassPartition`): seen and absent classes, given to `evaluate.load`.
    """

    def __init__(self, *args: Any, partition: ClassPartition | None = None, **kwargs: Any) -> None:
        if not isinstance(partition, ClassPartition):
            raise ValueError(
                f"Expected `partition`, a ClassPartition, got {partition!r}; call "
                '`evaluate.load(metric_path("ausuc"), partition=...)`.'
            )
        super().__init__(*args, **kwargs)
        self.state = SweepState(partition)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds logits and class ids of a batch."""
        self.state.update(predictions, references)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds logits and class id of one sample."""
        self.add_batch(predictions=np.asarray(prediction)[None], references=[reference])

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        """Returns AUSUC, its factors and the accuracies of all that was added since the last call."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        result = summarise(self.state)
        self.state = SweepState(self.state.partition)
        return result
