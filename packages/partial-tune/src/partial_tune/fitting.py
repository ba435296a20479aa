"""Runs a model over data for the ways to choose an offset."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset

from partial_tune.functional import FloatArray, reduce_logits
from partial_tune.gamma import GammaEstimate, GapCollector, PseudoSplit, run_pseudo_split
from partial_tune.partition import ClassPartition
from partial_tune.result import Criterion
from partial_tune.running import collect, iter_logits, split_batch
from partial_tune.sweep import SweepState
from partial_tune.validation import check_logits


def collect_sweep(model: nn.Module, loader: Iterable[Any], partition: ClassPartition) -> SweepState:
    """Returns the sweep state of a labelled loader."""
    state = SweepState(partition)
    for logits, labels in iter_logits(model, loader):
        state.update(logits, require_labels(labels))
    return state


def collect_gaps(model: nn.Module, loader: Iterable[Any], partition: ClassPartition) -> GammaEstimate:
    """Returns the average logit gap of a loader of fine-tuning samples."""
    collector = GapCollector(partition)
    for logits, labels in iter_logits(model, loader):
        collector.update(logits, require_labels(labels))
    return collector.estimate()


def collect_absent_gaps(model: nn.Module, loader: Iterable[Any], partition: ClassPartition) -> FloatArray:
    """Returns the largest seen minus the largest absent logit of each sample of a loader, with labels or without."""
    gaps = []
    for batch, _ in iter_logits(model, loader):
        logits = check_logits(batch, partition)
        nothing = torch.zeros(len(logits), dtype=torch.long)  # labels, which the gap does not depend on
        gaps.append(reduce_logits(logits, nothing, partition.absent_mask).gap.cpu().numpy())
    if not gaps:
        raise ValueError("Expected at least one batch, got an empty loader.")
    return np.concatenate(gaps)


def require_labels(labels: Tensor | None) -> Tensor:
    """Returns the labels, or raises if there are none."""
    if labels is None:
        raise ValueError("Expected batches with `labels`, got none; use mappings with `labels` or (inputs, labels).")
    return labels


def run_splits(
    loader: DataLoader[Any],
    partition: ClassPartition,
    fine_tune: Callable[[Dataset[Any]], nn.Module],
    num_splits: int,
    seed: int,
    criterion: Criterion,
    value: float | None,
) -> list[PseudoSplit]:
    """Returns the splits of pseudo cross-validation that found an offset.

    Raises:
        ValueError: if the loader does not read its data set in order; the class of each sample is not known then.
    """
    if not isinstance(loader.sampler, SequentialSampler):
        raise ValueError(
            "Expected a loader that reads its whole data set for pseudo cross-validation, got one with a "
            f"{type(loader.sampler).__name__}; give a loader over a `torch.utils.data.Subset` instead."
        )
    labels = torch.cat([torch.as_tensor(require_labels(split_batch(batch)[2])).cpu() for batch in loader]).numpy()
    dataset = loader.dataset

    def predict(model: nn.Module, ids: list[int]) -> tuple[Tensor, Tensor]:
        part = DataLoader(Subset(dataset, ids), batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn)
        logits, found, _ = collect(model, part)
        return logits, require_labels(found)

    splits = [
        run_pseudo_split(
            partition,
            labels,
            lambda ids: fine_tune(Subset(dataset, ids)),
            predict,
            split=split,
            seed=seed,
            criterion=criterion,
            value=value,
        )
        for split in range(num_splits)
    ]
    return [split for split in splits if split is not None]
