"""Accuracies of class groups: who is asked (S, U or all Y) and among which classes the answer is chosen."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from partial_tune.functional import harmonic_mean
from partial_tune.partition import ClassPartition
from partial_tune.validation import check_labels, check_logits

logger = logging.getLogger(__name__)
Average = Literal["micro", "macro"]


def group_accuracies(
    logits: Any,
    labels: Any,
    partition: ClassPartition,
    *,
    gamma: float = 0.0,
    top_k: int = 1,
    average: Average = "micro",
) -> dict[str, float | None]:
    """Returns the accuracies of samples of one group, their class chosen among the classes of one group.

    `"U/Y"` is the accuracy on samples of absent classes with all classes to choose from (is the deployed model
    usable?), `"U/U"` with the absent classes only (are relations among absent classes kept?). Of equal logits the
    lowest id wins; a class whose logit is -inf is never predicted.

    Args:
        logits (`torch.Tensor` or `numpy.ndarray` of shape `(N, C)`): logits of all classes.
        labels (`torch.Tensor` or `numpy.ndarray` of shape `(N,)`): class ids.
        partition (`ClassPartition`): which classes are seen and absent.
        gamma (`float`, defaults to 0): offset added to the logits of absent classes.
        top_k (`int`, defaults to 1): a sample is right if its label is among the `top_k` best of the group.
        average (`str`, defaults to `"micro"`): `"micro"` averages samples, `"macro"` the accuracies of the classes.

    Returns:
        `dict[str, float | None]`: `"Y/Y"`, `"S/Y"`, `"U/Y"`, `"S/S"`, `"U/U"` and `"H"`, the harmonic mean of S/Y and
        U/Y; with remaining classes also `"R/Y"` and `"R/R"`. None for a group without samples, with a warning.

    Raises:
        TypeError, ValueError: if logits or labels do not fit the partition, or an option is unknown.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, group_accuracies
    >>> partition = ClassPartition(("ant", "bee", "cat"), seen=(0, 2))
    >>> logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.5, 0.0]])
    >>> found = group_accuracies(logits, torch.tensor([0, 1]), partition)
    >>> found["S/Y"], found["U/Y"], found["U/U"]
    (1.0, 0.0, 1.0)

    ```
    """
    if average not in get_args(Average):
        raise ValueError(f'Expected `average` to be "micro" or "macro", got {average!r}.')
    if not 1 <= top_k <= partition.num_classes:
        raise ValueError(f"Expected `top_k` from 1 to the {partition.num_classes} classes, got {top_k}.")
    logits = check_logits(logits, partition)
    labels = check_labels(labels, len(logits), partition).to(logits.device)
    if gamma:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits + gamma * partition.absent_mask.to(logits)
    groups = {"S": partition.seen, "U": partition.absent}
    if partition.remaining:
        groups["R"] = partition.remaining
    everything = tuple(range(partition.num_classes))
    found: dict[str, float | None] = {
        f"{asked}/Y": _accuracy(logits, labels, ids, everything, top_k, average)
        for asked, ids in {"Y": everything, **groups}.items()
    }
    for asked, ids in groups.items():
        found[f"{asked}/{asked}"] = _accuracy(logits, labels, ids, ids, top_k, average)
    if empty := [key for key, value in found.items() if value is None]:
        logger.warning("There are no samples for %s: None, not an accuracy.", ", ".join(empty))
    found["H"] = harmonic_or_none(found["S/Y"], found["U/Y"])
    return found


def _accuracy(
    logits: Tensor, labels: Tensor, asked: Sequence[int], among: Sequence[int], top_k: int, average: Average
) -> float | None:
    """Share of samples with a label in `asked` whose label is among the best of the classes `among`."""
    rows = torch.isin(labels, torch.tensor(asked, device=labels.device))
    if not rows.any():
        return None
    ids = torch.tensor(among, device=logits.device)
    group, target = logits[rows][:, ids], labels[rows]
    # `topk` orders ties as it likes: count what is better, or equal with a lower id.
    own = group.gather(1, (ids[None] == target[:, None]).int().argmax(dim=1, keepdim=True))
    is_better = (group > own) | ((group == own) & (ids[None] < target[:, None]))
    is_right = ((is_better.sum(dim=1) < top_k) & (own[:, 0] > -torch.inf)).cpu().double()
    if average == "micro":
        return float(is_right.mean())
    target = target.cpu()
    per_class = [is_right[target == index].mean() for index in target.unique()]
    return float(torch.stack(per_class).mean())


def harmonic_or_none(seen: float | None, absent: float | None) -> float | None:
    """Returns the harmonic mean of two accuracies, None if one of them is."""
    if seen is None or absent is None:
        return None
    return float(harmonic_mean(np.float64(seen), np.float64(absent)))


def format_accuracies(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """Returns a Markdown table of accuracies in percent, one line for each name."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = ["-" if (value := row.get(key)) is None else f"{100 * value:.1f}" for key in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
