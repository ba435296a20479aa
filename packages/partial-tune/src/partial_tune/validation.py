"""Checks of logits and labels at the public boundary."""

from typing import Any

import torch
from torch import Tensor

from partial_tune.partition import ClassPartition


def check_logits(logits: Any, partition: ClassPartition) -> Tensor:
    """Returns logits as a tensor, or raises if they do not fit the partition, are NaN or +inf.

    Raises:
        TypeError: if they are no floating-point numbers.
        ValueError: if the shape is not `(N, num_classes)`, a value is NaN or +inf, or a row is all -inf.
    """
    tensor = torch.as_tensor(logits)
    if not tensor.is_floating_point():
        raise TypeError(f"Expected floating-point `logits`, got {tensor.dtype}; class ids are no logits.")
    if tensor.ndim != 2 or tensor.shape[1] != partition.num_classes:
        raise ValueError(
            f"Expected `logits` of shape (N, {partition.num_classes}), one column for each class of the partition, "
            f"got {tuple(tensor.shape)}; a head with outputs for the seen classes only cannot predict the absent ones."
        )
    highest = tensor.amax(dim=1)  # NaN if any is, +inf if any is, -inf if all are
    if not torch.isfinite(highest).all():
        row = int((~torch.isfinite(highest)).nonzero()[0, 0])
        raise ValueError(
            f"Expected `logits` without NaN or +inf and with a finite value in each row, got {highest[row].item()} as "
            f"the maximum of row {row}."
        )
    return tensor


def check_labels(labels: Any, count: int, partition: ClassPartition) -> Tensor:
    """Returns labels as an int64 tensor, or raises if they are not `count` ids of the partition's classes.

    Raises:
        TypeError: if they are no integers.
        ValueError: if the number of labels differs or an id is out of range.
    """
    tensor = torch.as_tensor(labels)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"Expected integer `labels`, got {tensor.dtype}.")
    if tensor.shape != (count,):
        raise ValueError(f"Expected {count} `labels`, one for each row of logits, got shape {tuple(tensor.shape)}.")
    outside = (tensor < 0) | (tensor >= partition.num_classes)
    if outside.any():
        row = int(outside.nonzero()[0, 0])
        raise ValueError(
            f"Expected `labels` from 0 to {partition.num_classes - 1}, got {int(tensor[row])} in row {row}."
        )
    return tensor.long()
