"""Runs a model over labelled data in evaluation mode: the only place that calls one."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from partial_tune.upstream import get_logits, move_to


def build_eval_loader(loader: Iterable[Any]) -> Iterable[Any]:
    """Returns a loader of every sample once, in order, over the data set of a shuffled or truncating training loader.

    Loaders with a sampler of their own, and other iterables of batches, are returned as they are. Augmentation is part
    of the data set and stays: give a loader without it.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return loader
    batches = loader.batch_sampler
    while batches is not None and hasattr(batches, "batch_sampler"):  # accelerate shards batches among processes
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", loader.sampler)
    if not isinstance(sampler, (RandomSampler, SequentialSampler)):
        return loader
    size = loader.batch_size or getattr(batches, "batch_size", None) or 1
    return DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn, num_workers=loader.num_workers)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """Returns positional inputs, named inputs and labels of a batch: a mapping, or `(inputs, labels)`."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        labels = inputs.pop("labels", inputs.pop("label", None))
        return (), inputs, labels
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        inputs, labels = batch
        return ((), dict(inputs), labels) if isinstance(inputs, Mapping) else ((inputs,), {}, labels)
    if isinstance(batch, Tensor):
        return (batch,), {}, None
    raise TypeError(f"Expected batches that are mappings or (inputs, labels), got {type(batch).__name__}.")


def iter_logits(model: nn.Module, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields logits and labels of each batch, in evaluation mode, without gradients.

    Labels are not given to the model: no loss is computed. The mode of every module is restored at the end.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        for batch in loader:
            args, kwargs, labels = split_batch(batch)
            with torch.no_grad():
                logits = get_logits(model(*move_to(args, device), **move_to(kwargs, device)))
            yield logits, labels


def collect(
    model: nn.Module, loader: Iterable[Any], head: nn.Module | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns logits, labels (None if there are none) and features of a whole loader, on the CPU.

    Features are the inputs of `head`, of shape `(N, D)`; without `head` they are empty.

    Raises:
        ValueError: if the loader is empty, or the head sees more than one vector of a sample.
    """
    features: list[Tensor] = []
    handle = None
    if head is not None:
        handle = head.register_forward_pre_hook(lambda _, inputs: features.append(check_features(inputs[0]).cpu()))
    try:
        parts = [(logits.cpu(), labels) for logits, labels in iter_logits(model, loader)]
    finally:
        if handle is not None:
            handle.remove()
    if not parts:
        raise ValueError("Expected at least one batch, got an empty loader.")
    labels = None if parts[0][1] is None else torch.cat([torch.as_tensor(labels).cpu() for _, labels in parts])
    return torch.cat([logits for logits, _ in parts]), labels, torch.cat(features) if features else torch.empty(0)


def check_features(features: Tensor) -> Tensor:
    """Returns the inputs of a head, or raises if they are not one vector for each sample."""
    if features.ndim != 2:
        raise ValueError(
            f"Expected one feature vector for each sample at the head, got inputs of shape {tuple(features.shape)}: a "
            "decoder language model has a head for every token. `diagnose` and `rank_weight` are not for such models."
        )
    return features


def read_sample_labels(dataset: Any) -> np.ndarray:
    """Returns the label id of every sample of a map-style data set.

    They are read from a column of `datasets`, from `targets` as torchvision's data sets have it, through `Subset`, or
    else row by row, which decodes images.

    Raises:
        ValueError: if there are no labels.
    """
    if isinstance(dataset, Subset):
        return read_sample_labels(dataset.dataset)[list(dataset.indices)]
    if isinstance(columns := getattr(dataset, "column_names", None), list):
        found = [name for name in ("labels", "label") if name in columns]
        if not found:
            raise ValueError(f"Expected a column `labels` or `label` in the training data, got {columns}.")
        return np.asarray(dataset.with_format(None)[found[0]][:], dtype=np.int64)
    targets = getattr(dataset, "targets", None)
    if targets is not None and len(targets) == len(dataset) and getattr(dataset, "target_transform", None) is None:
        return np.asarray(targets, dtype=np.int64)
    labels = []
    for index in range(len(dataset)):
        row = dataset[index]
        label = row.get("labels", row.get("label")) if isinstance(row, Mapping) else row[1]
        if label is None:
            raise ValueError(f"Expected `labels` or `label` in row {index} of the training data, got {list(row)}.")
        labels.append(int(label))
    return np.asarray(labels, dtype=np.int64)
