"""The sweep over all offsets: [`SweepState`] collects samples, [`seen_absent_sweep`] takes them at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from partial_tune.functional import FloatArray, ReducedLogits, reduce_logits
from partial_tune.partition import ClassPartition
from partial_tune.result import SweepResult
from partial_tune.validation import check_labels, check_logits


class SweepState:
    """Collects what the sweep needs of each sample, batch by batch: nine bytes instead of its logits.

    Args:
        partition (`ClassPartition`): the classes of the logits' columns.

    Raises:
        ValueError: if the partition has classes that are neither seen nor absent.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, SweepState
    >>> state = SweepState(ClassPartition(("ant", "bee", "cat"), seen=(0, 2)))
    >>> state.update(torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.5, 0.0]]), torch.tensor([0, 1]))
    >>> state.update(torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([2]))
    >>> state.result().ausuc
    1.0

    ```
    """

    def __init__(self, partition: ClassPartition) -> None:
        if partition.remaining:
            raise ValueError(
                f"Expected every class to be seen or absent, but {len(partition.remaining)} of "
                f"{partition.num_classes} are neither: the curve of seen against absent accuracy is not defined."
            )
        self.partition = partition
        self._gaps: list[FloatArray] = []
        self._flags: list[NDArray[np.uint8]] = []

    def __len__(self) -> int:
        return sum(map(len, self._gaps))

    @property
    def nbytes(self) -> int:
        """Bytes held, whatever the number of classes."""
        return sum(array.nbytes for array in self._gaps) + sum(array.nbytes for array in self._flags)

    def update(self, logits: Any, labels: Any, accelerator: Any = None) -> None:
        """Reduces a batch on its device and keeps four numbers of each sample.

        Args:
            logits (`torch.Tensor` or `numpy.ndarray` of shape `(batch_size, num_classes)`): any floating dtype.
            labels (`torch.Tensor` or `numpy.ndarray` of shape `(batch_size,)`): class ids.
            accelerator (`accelerate.Accelerator`, *optional*):
                Collects the numbers of all processes, and drops the samples that were added to fill the last batch.

        Raises:
            TypeError, ValueError: if logits or labels do not fit the partition, or are NaN or +inf.
        """
        logits = check_logits(logits, self.partition)
        labels = check_labels(labels, len(logits), self.partition)
        reduced = reduce_logits(logits, labels, self.partition.absent_mask)
        if accelerator is not None:
            reduced = ReducedLogits(*accelerator.gather_for_metrics(tuple(reduced)))
        self.add_reduced(reduced)

    def add_reduced(self, reduced: ReducedLogits) -> None:
        """Keeps samples that were reduced elsewhere, by [`functional.reduce_logits`]."""
        bits = [np.asarray(values.cpu(), dtype=bool) for values in reduced[1:]]
        self._gaps.append(np.asarray(reduced.gap.cpu(), dtype=np.float64))
        self._flags.append(np.packbits(np.stack(bits), axis=0, bitorder="little")[0])

    def merge(self, other: "SweepState") -> "SweepState":
        """Returns a state with the samples of both.

        Raises:
            ValueError: if the partitions differ.
        """
        if other.partition != self.partition:
            raise ValueError("Expected two states of the same partition; the classes or the groups differ.")
        merged = SweepState(self.partition)
        merged._gaps, merged._flags = self._gaps + other._gaps, self._flags + other._flags
        return merged

    def result(self) -> SweepResult:
        """Returns the sweep over all samples so far.

        Raises:
            ValueError: if there are none.
        """
        if len(self) == 0:
            raise ValueError("Expected at least one sample, got none; call `update(logits, labels)` first.")
        flags = np.unpackbits(np.concatenate(self._flags)[None], axis=0, bitorder="little", count=4).astype(bool)
        return SweepResult(np.concatenate(self._gaps), *flags)


def seen_absent_sweep(logits: Any, labels: Any, partition: ClassPartition) -> SweepResult:
    """Returns the exact seen and absent accuracy at every offset that can be added to the logits of absent classes.

    Calibrated stacking and AUSUC of "An Empirical Study and Analysis of Generalized Zero-Shot Learning" (arXiv
    1605.04253), as used by "Fine-Tuning is Fine, if Calibrated" (arXiv 2409.16223), without a grid: the prediction of
    a sample changes once, so N samples have at most N + 1 different results. O(N C) to reduce, O(N log N) to sort.

    Args:
        logits (`torch.Tensor` or `numpy.ndarray` of shape `(N, C)`): logits of all classes, any floating dtype.
        labels (`torch.Tensor` or `numpy.ndarray` of shape `(N,)`): class ids.
        partition (`ClassPartition`): which of the C classes are seen and which are absent.

    Returns:
        `SweepResult`

    Raises:
        TypeError, ValueError: if logits or labels do not fit the partition, or are NaN or +inf.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, seen_absent_sweep
    >>> partition = ClassPartition(("ant", "bee", "cat"), seen=(0, 2))
    >>> logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.5, 0.0], [0.0, 1.0, 4.0], [1.0, 0.4, 0.0]])
    >>> result = seen_absent_sweep(logits, torch.tensor([0, 1, 2, 1]), partition)
    >>> result.at(0.0).absent, result.at(1.0).absent, result.ausuc
    (0.0, 1.0, 1.0)

    ```
    """
    state = SweepState(partition)
    state.update(logits, labels)
    return state.result()
