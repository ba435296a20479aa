"""Puts a user's own copies of the images to the labels, and says on which terms they may be used."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import datasets

from hf_compbench.sources import SOURCES

logger = logging.getLogger(__name__)


def list_terms(sources: Iterable[str]) -> str:
    """Returns the terms of the named sources, a line each; images of our own need none."""
    return "\n".join(f"- {name}: {SOURCES[name].terms}" for name in sorted(set(sources)) if name in SOURCES)


def locate(root: Path, key: str) -> Path | None:
    """Returns the file of an image below `root`, or None. What leads out of `root` is refused."""
    if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
        raise ValueError(f"Expected the path of an image below {root}, got {key!r}.")
    path = root / key
    if not path.is_file():
        return None
    if root.resolve() not in path.resolve().parents:
        raise ValueError(f"Expected {key!r} to stay below {root}, but it is a link to {path.resolve()}.")
    return path


def resolve_images(
    dataset: datasets.Dataset,
    image_root: str | Path,
    *,
    accept_terms: bool = False,
    on_missing: Literal["error", "skip"] = "error",
) -> datasets.Dataset:
    """Returns the dataset with its images taken from a folder; they are decoded only when looked at.

    No image of the fourteen sources may be passed on with this package: get each from where its terms say, and agree
    to them with `accept_terms=True`.

    Args:
        dataset: canonical rows without images, as from [`load_compbench`].
        image_root: folder with the sub-folders that the authors' README describes (`cub_200_2011/...`, ...).
        accept_terms: that you have read and accept the terms of the sources in the dataset.
        on_missing: `"error"`, or `"skip"` to leave out rows without a file (how many is logged).

    Raises:
        PermissionError: without `accept_terms`; the message holds the terms.
        FileNotFoundError: if files are missing; the message names some.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_compbench import resolve_images
    >>> from hf_compbench.features import build_dataset, build_row
    >>> row = build_row(source="celeba", relativity="emotion", keys=("a.jpg", "b.jpg"), answer_text="Left",
    ...                 question="Which person smiles more?", options=["Left", "Right"])
    >>> resolve_images(build_dataset([row]), tempfile.gettempdir())
    Traceback (most recent call last):
    PermissionError: Pass accept_terms=True if you have read and accept the terms of these images:
    - celeba: CelebA is for non-commercial research; images must not be passed on.

    ```
    """
    if on_missing not in ("error", "skip"):
        raise ValueError(f"Expected `on_missing` to be 'error' or 'skip', got {on_missing!r}.")
    root = Path(image_root)
    if not root.is_dir():
        raise FileNotFoundError(f"Expected a folder of images, got {str(root)!r}.")
    names = dataset.features["source"].names
    terms = list_terms(names[code] for code in dataset.unique("source"))
    if not accept_terms:
        raise PermissionError(
            f"Pass accept_terms=True if you have read and accept the terms of these images:\n{terms}"
        )
    if terms:
        logger.warning("You have accepted these terms of the images:\n%s", terms)
    keys = list(zip(dataset["image_1_key"][:], dataset["image_2_key"][:], strict=True))
    found = {key: locate(root, key) for pair in keys for key in pair if key}
    kept = _find_complete(keys, found, root, on_missing)
    columns: dict[str, list[Any]] = {"image_1": [], "image_2": [], "composite": []}
    for i in kept:
        first, second = ({"path": str(found[key]), "bytes": None} if key else None for key in keys[i])
        columns["image_1"].append(first if second else None)
        columns["image_2"].append(second)
        columns["composite"].append(None if second else first)
    chosen = dataset.select(kept).remove_columns(list(columns))
    for name, values in columns.items():
        chosen = chosen.add_column(name, values, feature=datasets.Image())
    return chosen.select_columns(dataset.column_names)


def _find_complete(
    keys: Sequence[tuple[str, str]], found: Mapping[str, Path | None], root: Path, on_missing: str
) -> list[int]:
    """The rows whose images are all there."""
    missing = sorted(key for key, path in found.items() if path is None)
    if missing and on_missing == "error":
        listed = ", ".join(missing[:3])
        raise FileNotFoundError(
            f"Expected {len(found)} images below {root}, {len(missing)} are missing, e.g. {listed}. "
            "Pass on_missing='skip' to go on without their rows."
        )
    kept = [i for i, pair in enumerate(keys) if all(found[key] is not None for key in pair if key)]
    if len(kept) < len(keys):
        logger.warning("%d of %d rows are left out: their images are missing", len(keys) - len(kept), len(keys))
    return kept
