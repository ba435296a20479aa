"""What a user brings in place of the nano models and the rendered images: models and images, by Hub id or folder."""

import argparse
from dataclasses import dataclass, fields
from typing import Any

import datasets
import torch
from PIL import Image

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HELP = {
    "data": "images with labels, splits train and test: whatever `datasets.load_dataset` reads",
    "classifier": "an image classifier; for the claims about fine-tuning it knows the classes of --data by name",
    "backbones": "two vision backbones",
    "vlm": "a vision-language model that takes two images",
    "llm": "a decoder-only language model",
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """Hub ids or folders; what is None is not measured with. See `HELP`."""

    data: str | None = None
    classifier: str | None = None
    backbones: tuple[str, ...] | None = None
    vlm: str | None = None
    llm: str | None = None

    def describe(self, names: tuple[str, ...]) -> str:
        """What was given under these names, in words."""
        values = (getattr(self, name) for name in names)
        return ", ".join(value if isinstance(value, str) else " and ".join(value) for value in values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command line from which `Given` is made: one for each field."""
    for field in fields(Given):
        several: dict[str, Any] = {"nargs": 2} if field.name == "backbones" else {}
        parser.add_argument(f"--{field.name}", help=HELP[field.name], metavar="ID", **several)


def load_images(source: str, split: str, count: int) -> tuple[list[Image.Image], list[int], list[str]]:
    """Images of a split, their labels and the names of the classes; a random draw, always the same.

    Raises:
        ValueError: if there is no such split, or no column of images or of labels with names.
    """
    try:
        rows = datasets.load_dataset(source, split=split)
    except (OSError, ValueError) as error:
        raise ValueError(f"expected --data to have a split {split!r}, got {source!r}: {error}") from None
    image = find_column(rows, datasets.Image, source)
    label = find_column(rows, datasets.ClassLabel, source)
    rows = rows.shuffle(seed=0).select(range(min(count, len(rows))))
    return [one.convert("RGB") for one in rows[image]], rows[label][:], rows.features[label].names


def find_column(rows: datasets.Dataset, kind: type, source: str) -> str:
    """The first column of this kind."""
    for name, feature in rows.features.items():
        if isinstance(feature, kind):
            return name
    raise ValueError(f"expected a column of kind {kind.__name__} in {source!r}, got {', '.join(rows.column_names)}")


def match_classes(config: Any, names: list[str]) -> list[int]:
    """The classes of a model that have these names.

    Raises:
        ValueError: if the model lacks one of them.
    """
    ids = {str(name): int(index) for index, name in config.id2label.items()}
    if missing := [name for name in names if name not in ids]:
        raise ValueError(f"expected a classifier that knows {missing[0]!r} of --data, got one of {list(ids)[:3]}, ...")
    return [ids[name] for name in names]
