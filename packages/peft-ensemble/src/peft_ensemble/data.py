"""Images and labels as batches: ids, fingerprints, and the collator that draws views and calls the image processor."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Array2D, Array3D, Dataset
from transformers import BaseImageProcessor

from .augmentation import View, augment, to_tensor


def with_ids(dataset: Dataset) -> Dataset:
    """The data set with a column `id` of unique strings: its own, or hashes of the pixels.

    Raises:
        ValueError: no column `image`, or ids that repeat (equal images without an `id` of their own, for instance).

    Example:

    ```python
    >>> rows = Dataset.from_dict({"image": [[[0, 1], [2, 3]]], "id": [7]})
    >>> with_ids(rows)["id"][0]
    '7'

    ```
    """
    if "image" not in dataset.column_names:
        raise ValueError(f"expected a data set with a column `image`, got {dataset.column_names}")
    if "id" in dataset.column_names:
        ids = [str(value) for value in dataset["id"]]
        dataset = dataset.remove_columns("id")
    else:
        ids = [_hash_pixels(image) for image in dataset["image"]]
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(value for value in ids if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise ValueError(f"expected unique ids, but {twice!r} occurs again; give the data set a column `id`")
    return dataset.add_column("id", ids)


def _hash_pixels(image: Any) -> str:
    pixels = to_tensor(image)
    content = f"{tuple(pixels.shape)}".encode() + bytes(pixels.flatten().tolist())
    return hashlib.sha256(content).hexdigest()[:16]


def with_arrays(dataset: Dataset) -> Dataset:
    """The data set with images of a fixed size as arrays, where `datasets` would make nested lists, slowly."""
    if not isinstance(dataset.features["image"], (Array2D, Array3D)) or not _can_format():
        return dataset
    return dataset.with_format("numpy", columns=["image"], output_all_columns=True)


def _can_format() -> bool:
    """Whether `datasets` can hand out arrays: beside torchvision it asks for a class that torchvision 0.26 has not."""
    return find_spec("torchvision") is None or hasattr(import_module("torchvision.io"), "VideoReader")


def fingerprint(dataset: Dataset) -> str:
    """A hash of the ids in order, and of the labels or soft labels if there are some."""
    digest = hashlib.sha256(json.dumps(dataset["id"][:]).encode())
    for column in ("label", "soft_labels"):
        if column in dataset.column_names:
            digest.update(json.dumps(dataset[column][:]).encode())
    return digest.hexdigest()[:16]


def read_labels(dataset: Dataset, num_labels: int) -> torch.Tensor:
    """The column `label` as int64 `(N,)`.

    Raises:
        ValueError: no such column, or a label outside 0..num_labels - 1.
    """
    if "label" not in dataset.column_names:
        raise ValueError(f"expected a data set with a column `label`, got {dataset.column_names}")
    labels = torch.tensor(dataset["label"][:], dtype=torch.long)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise ValueError(f"expected labels from 0 to {num_labels - 1}, got {int(labels.min())} to {int(labels.max())}")
    return labels


@dataclass
class ViewCollator:
    """Rows with `image`, `id` and perhaps `label`, `soft_labels` or `weight` to one batch.

    Args:
        processor: the backbone's image processor: its size, mean and standard deviation.
        views: one or more; their images come one view after the other, labels repeated to match.
        seed: of the views, with the epoch and the id of the image.
        epoch: set by the trainer at the start of each epoch.

    Example:

    ```python
    >>> from transformers import ViTImageProcessor
    >>> collator = ViewCollator(ViTImageProcessor(size={"height": 8, "width": 8}), views=("weak", "strong"))
    >>> batch = collator([{"image": torch.zeros(8, 8, 3, dtype=torch.uint8), "id": "a", "label": 2}])
    >>> batch["pixel_values"].shape, batch["labels"]
    (torch.Size([2, 3, 8, 8]), tensor([2, 2]))

    ```
    """

    processor: BaseImageProcessor
    views: Sequence[View] = ("none",)
    seed: int = 0
    epoch: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch: `pixel_values` `(views * rows, 3, height, width)` and what labels there are."""
        batch = {"pixel_values": self.read_images(rows)}
        for column, name in (("label", "labels"), ("soft_labels", "soft_labels"), ("weight", "weight")):
            if column in rows[0]:
                dtype = torch.long if column == "label" else torch.float32
                values = torch.tensor([row[column] for row in rows], dtype=dtype)
                batch[name] = values.repeat(len(self.views), *[1] * (values.dim() - 1))
        return batch

    def read_images(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        """The views of all rows, as the processor makes them."""
        images = [to_tensor(row["image"]) for row in rows]
        seen = [
            augment(image, view, (self.seed, self.epoch, row["id"]))
            for view in self.views
            for image, row in zip(images, rows, strict=True)
        ]
        pixel_values: torch.Tensor = self.processor(images=seen, return_tensors="pt")["pixel_values"]
        return pixel_values


@dataclass
class MixCollator(ViewCollator):
    """A `ViewCollator` that puts beside each row of a batch one of some labelled images, drawn with replacement.

    Which ones follows from the seed, the epoch and the first id of the batch alone.

    Args:
        beside: the labelled images, with the columns of the rows.
    """

    beside: Dataset = field(kw_only=True)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch of the rows and as many labelled images behind them."""
        digest = hashlib.sha256(repr((self.seed, self.epoch, rows[0]["id"])).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.randint(len(self.beside), (len(rows),), generator=generator).tolist()
        return super().__call__([*rows, *(self.beside[place] for place in drawn)])
