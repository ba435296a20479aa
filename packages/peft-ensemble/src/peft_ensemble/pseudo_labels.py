"""Pseudo-labels as a table, and the pool with the targets that a student learns. Rows are known by their ids."""

from collections.abc import Collection

import torch
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets

from .aggregation import break_ties, vote_counts
from .data import read_labels

FEATURES = Features(
    {
        "id": Value("string"),
        "target": Sequence(Value("float32")),
        "vote_counts": Sequence(Value("int64")),
        "top1": Value("int64"),
        "margin": Value("float64"),
        "entropy": Value("float64"),
        "n_members": Value("int64"),
        "is_labeled": Value("bool"),
    }
)


def build_table(ids: list[str], logits: torch.Tensor, targets: torch.Tensor, labeled_ids: Collection[str]) -> Dataset:
    """The pseudo-labels of a pool and what is known about each; see `PeftEnsemble.pseudo_label`.

    Args:
        ids: of the images.
        logits: `(K, N, C)`.
        targets: `(N, C)`, as from `aggregate`.
        labeled_ids: the ids of labelled images.
    """
    largest = targets.topk(2, dim=-1).values
    return Dataset.from_dict(
        {
            "id": ids,
            "target": targets.float().tolist(),
            "vote_counts": vote_counts(logits).tolist(),
            "top1": break_ties(targets, logits).tolist(),
            "margin": (largest[:, 0] - largest[:, 1]).tolist(),
            "entropy": torch.special.entr(targets).sum(dim=-1).tolist(),
            "n_members": [len(logits)] * len(ids),
            "is_labeled": [value in labeled_ids for value in ids],
        },
        features=FEATURES,
    )


def attach_targets(dataset: Dataset, pseudo_labels: Dataset) -> Dataset:
    """The images of a pool with their targets as `soft_labels`.

    Raises:
        ValueError: an image without a pseudo-label.
    """
    targets = dict(zip(pseudo_labels["id"][:], pseudo_labels["target"][:], strict=True))
    if missing := [value for value in dataset["id"] if value not in targets]:
        raise ValueError(f"expected a pseudo-label for every image; {len(missing)} have none, such as {missing[0]!r}")
    dataset = dataset.select_columns(["image", "id"])
    return dataset.add_column("soft_labels", [targets[value] for value in dataset["id"]])


def as_targets(labeled: Dataset, num_labels: int) -> Dataset:
    """Labelled images with one-hot `soft_labels`."""
    one_hot = torch.nn.functional.one_hot(read_labels(labeled, num_labels), num_labels).float()
    return labeled.select_columns(["image", "id"]).add_column("soft_labels", one_hot.tolist())


def override(pool: Dataset, truth: Dataset) -> Dataset:
    """The pool with true labels where they are known, and behind it the labelled images that it lacks.

    Args:
        pool: from `attach_targets`.
        truth: from `as_targets`.
    """
    known = dict(zip(truth["id"][:], truth["soft_labels"][:], strict=True))
    targets = [known.get(key, target) for key, target in zip(pool["id"], pool["soft_labels"], strict=True)]
    pool = pool.remove_columns("soft_labels").add_column("soft_labels", targets)
    extra = without(truth, set(pool["id"]))
    return concatenate_datasets([pool, extra.cast(pool.features)]) if len(extra) else pool


def without(dataset: Dataset, ids: Collection[str]) -> Dataset:
    """The rows with other ids."""
    return dataset.select([place for place, value in enumerate(dataset["id"]) if value not in ids])
