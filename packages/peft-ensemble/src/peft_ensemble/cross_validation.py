"""Accuracy of a candidate on labelled images that it has not seen, from k trainings on parts of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainingArguments

from . import fitting
from .data import read_labels
from .members import MemberSpec
from .prediction import ask_members
from .prefix import FeatureCache
from .storage import read_json, write_json


def split_folds(labels: torch.Tensor, num_folds: int) -> torch.Tensor:
    """The fold of each image: images of a class go to the folds in turn, and the next class goes on from there.

    Args:
        labels: int64 `(N,)`.

    Returns:
        int64 `(N,)`, from 0 to `num_folds` - 1; folds differ in size by at most one.

    Example:

    ```python
    >>> split_folds(torch.tensor([0, 1, 0, 1, 0, 1]), num_folds=2)
    tensor([0, 1, 1, 0, 0, 1])

    ```
    """
    order = labels.argsort(stable=True)
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels)) % num_folds
    return folds


def cross_validate(
    spec: MemberSpec,
    label_names: Sequence[str],
    labeled: Dataset,
    args: TrainingArguments,
    folder: Path,
    num_folds: int,
    cache: FeatureCache | None = None,
) -> float:
    """The share of labelled images that a member gets right when their fold is left out of its training.

    Args:
        spec, label_names, labeled, args, cache: as for `fitting.train`.
        folder: for the folds while they are trained, and the result, `accuracy.json`.
        num_folds: k, at most the number of images.

    Raises:
        ValueError: fewer images than folds.
    """
    if num_folds > len(labeled):
        raise ValueError(f"expected at least {num_folds} labelled images, one for each fold, got {len(labeled)}")
    result = folder / "accuracy.json"
    if not result.exists():
        labels = read_labels(labeled, len(label_names))
        folds = split_folds(labels, num_folds)
        right = 0
        for fold in range(num_folds):
            inside = (folds == fold).nonzero().flatten().tolist()
            rest = (folds != fold).nonzero().flatten().tolist()
            part = folder / f"fold-{fold}"
            views = (spec.augmentation,)
            fitting.train(spec, label_names, labeled.select(rest), args, part, views, "", cache=cache)
            (answer,) = ask_members([spec], [part], label_names, labeled.select(inside))
            right += int((answer["logits"].argmax(dim=-1) == labels[inside]).sum())
        write_json(result, {"accuracy": right / len(labeled), "num_folds": num_folds})
        for fold in range(num_folds):
            shutil.rmtree(folder / f"fold-{fold}", ignore_errors=True)
    return float(read_json(result)["accuracy"])
