"""Metrics for `Trainer` and for `evaluate`, from four numbers a sample instead of its logits."""

from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partial_tune.functional import ReducedLogits, reduce_logits
from partial_tune.partition import ClassPartition
from partial_tune.sweep import SweepState
from partial_tune.validation import check_labels, check_logits

METRICS = ("ausuc", "seen_absent_accuracy")


def metric_path(name: str) -> str:
    """Returns the folder of a metric of this package, for `evaluate.load`.

    Args:
        name (`str`): `"ausuc"` or `"seen_absent_accuracy"`.

    Raises:
        ValueError: for another name.

    Example:

    ```python
    >>> import evaluate
    >>> from partial_tune import ClassPartition, metric_path
    >>> metric = evaluate.load(metric_path("ausuc"), partition=ClassPartition(("ant", "bee"), seen=(0,)))
    >>> metric.add_batch(predictions=[[3.0, 0.0], [1.0, 0.0]], references=[0, 1])
    >>> metric.compute()["ausuc"]
    1.0

    ```
    """
    if name not in METRICS:
        raise ValueError(f"Expected one of {', '.join(METRICS)}, got {name!r}.")
    return str(resources.files("partial_tune") / "metrics" / name)


class SeenAbsentMetrics:
    """`compute_metrics` and `preprocess_logits_for_metrics` of a `Trainer`: the N x C logits are never gathered.

    Give both: `preprocess_logits_for_metrics` reduces each batch on its device.

    Args:
        partition (`ClassPartition`): the model's classes.
        gamma (`float`, defaults to 0): an offset at which the accuracies are reported as well.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, SeenAbsentMetrics
    >>> metrics = SeenAbsentMetrics(ClassPartition(("ant", "bee"), seen=(0,)))
    >>> labels = torch.tensor([0, 1])
    >>> reduced = metrics.preprocess_logits_for_metrics(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), labels)
    >>> reduced.shape
    torch.Size([2, 5])
    >>> metrics.compute_metrics((reduced.numpy(), labels.numpy()))["ausuc"]
    1.0

    ```
    """

    def __init__(self, partition: ClassPartition, gamma: float = 0.0) -> None:
        self.partition, self.gamma = partition, gamma

    def preprocess_logits_for_metrics(self, logits: Any, labels: Tensor) -> Tensor:
        """Returns a float64 tensor of shape `(batch_size, 5)` in place of logits of shape `(batch_size, C)`."""
        logits = check_logits(logits[0] if isinstance(logits, (tuple, list)) else logits, self.partition)
        labels = check_labels(labels, len(logits), self.partition)
        reduced = reduce_logits(logits, labels, self.partition.absent_mask)
        return torch.stack([values.double() for values in reduced], dim=1)

    def compute_metrics(self, prediction: Any) -> dict[str, float]:
        """Returns AUSUC, its factors, and the accuracies at 0, at `gamma`, and at the best offset (an oracle)."""
        columns = torch.as_tensor(np.asarray(prediction[0]))
        if columns.ndim != 2 or columns.shape[1] != len(ReducedLogits._fields):
            raise ValueError(
                f"Expected reduced logits of shape (N, {len(ReducedLogits._fields)}), got {tuple(columns.shape)}; "
                "give `preprocess_logits_for_metrics` to the Trainer as well."
            )
        state = SweepState(self.partition)
        state.add_reduced(ReducedLogits(columns[:, 0], *(columns[:, index].bool() for index in range(1, 5))))
        return summarise(state, self.gamma)


def summarise(state: SweepState, gamma: float = 0.0) -> dict[str, float]:
    """Returns flat numbers of a sweep, without the undefined ones of a group without samples."""
    result = state.result()
    found: dict[str, float | None] = {"ausuc": result.ausuc, **(result.factors or {})}
    points = {"": result.at(0.0), "_calibrated": result.at(gamma)}
    if result.num_seen and result.num_absent:
        points["_oracle"] = result.operating_point("overall")
        found["gamma_oracle"] = result.gamma_star
    for suffix, point in points.items():
        if suffix != "_calibrated" or gamma:
            for name in ("seen", "absent", "overall", "harmonic"):
                found[f"{name}{suffix}"] = getattr(point, name)
    return {name: value for name, value in found.items() if value is not None}
