"""Loads MLLM-CompBench and mini-CompBench."""

import logging
from pathlib import Path
from typing import Any, Literal

import datasets

from hf_compbench.features import build_dataset
from hf_compbench.groups import assign_groups
from hf_compbench.images import resolve_images
from hf_compbench.legacy import LabelFile, find_label_files, read_labels
from hf_compbench.mini import build_mini
from hf_compbench.sources import RELATIVITIES
from hf_compbench.splits import SPLITS, split_clean, split_official

logger = logging.getLogger(__name__)
CONFIGS = ("mini", "all", *RELATIVITIES)


def read_label_folder(folder: str | Path) -> list[LabelFile]:
    """Returns the label files of a folder, one for each source that is there; what could not be read is logged."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"Expected a folder with the label files of MLLM-CompBench, got {str(folder)!r}.")
    files = [read_labels(path, source) for source, path in find_label_files(root).items()]
    for file in files:
        if file.skipped:
            index, reason = file.skipped[0]
            logger.warning(
                "%s: %d entries hold no comparison, the first is entry %d: %s",
                file.source,
                len(file.skipped),
                index,
                reason,
            )
    return files


def build_splits(files: list[LabelFile], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of the official and the clean splits."""
    rows = assign_groups([row for file in files for row in file.rows])
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for part in (split_official(rows), split_clean(rows, seed)):
        for name, members in part.items():
            splits[name] += [dict(row) for row in members]
    return splits


def load_compbench(
    config: str = "mini",
    split: str = "test",
    *,
    source: Literal["local", "hub"] = "local",
    path: str | Path | None = None,
    image_root: str | Path | None = None,
    accept_terms: bool = False,
    on_missing: Literal["error", "skip"] = "error",
    streaming: bool = False,
    **mini_options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """Returns comparisons in the canonical columns.

    `"mini"` is made here, from rendered scenes (extra `mini`). The others are MLLM-CompBench itself: labels from the
    authors' release or from a folder or a Hub repository that `build_compbench` made, images from your own copies.

    Args:
        config: `"mini"`, `"all"`, or a kind of comparison: `"attribute"`, `"existence"`, `"state"`, `"emotion"`,
            `"temporality"`, `"spatiality"`, `"quantity"`, `"quality"`.
        split: `"train"`, `"validation"`, `"test"` or `"heldout"` of mini; else `"official_test"`, `"official_val"`
            (the authors' split, in their order), `"clean_test"` or `"clean_val"` (no shared images, no duplicates,
            sides balanced for each question).
        source: `"local"`: `path` is a folder of label JSON files or of Parquet made by `build_compbench`;
            `"hub"`: `path` is the id of a repository with such Parquet. There is no official one.
        path: see `source`.
        image_root: folder with your copies of the images, see [`resolve_images`]; for mini a folder of any photos,
            which adds pairs of edited photos.
        accept_terms: that you accept the terms of the images, see [`resolve_images`].
        on_missing: what to do about rows without a file, see [`resolve_images`].
        streaming: return an `IterableDataset`.
        **mini_options: `num_pairs`, `seed`, `image_size`, `relativities`, see [`hf_compbench.mini.build_mini`].

    Raises:
        ValueError, FileNotFoundError, PermissionError: with what was expected, got, and what to do.

    Example:

    ```python
    >>> from hf_compbench import load_compbench
    >>> ds = load_compbench("mini", num_pairs=8, relativities=("quantity",), image_size=64)
    >>> ds.num_rows, ds[0]["options"], ds[0]["image_1"].size
    (8, ['Left', 'Right', 'Same'], (64, 64))

    ```
    """
    _check_arguments(config, split, source, path, mini_options)
    if config == "mini":
        mini = build_mini(split, photos=image_root, **mini_options)
        return mini.to_iterable_dataset() if streaming else mini
    is_streamed = streaming and image_root is None
    loaded: datasets.Dataset | datasets.IterableDataset
    if source == "hub":
        loaded = datasets.load_dataset(str(path), config, split=split, streaming=is_streamed)
    elif any(Path(str(path)).glob("data/*/*.parquet")):
        loaded = _load_parquet(Path(str(path)), config, split, is_streamed)
    else:
        labels = _load_labels(str(path), config, split)
        loaded = labels.to_iterable_dataset() if is_streamed else labels
    if image_root is None:
        return loaded
    resolved = resolve_images(loaded, image_root, accept_terms=accept_terms, on_missing=on_missing)
    return resolved.to_iterable_dataset() if streaming else resolved


def _check_arguments(config: str, split: str, source: str, path: Any, mini_options: dict[str, Any]) -> None:
    """Raises a ValueError for what does not go together; the splits of mini are checked where it is made."""
    if config not in CONFIGS:
        raise ValueError(f"Expected `config` to be one of {', '.join(CONFIGS)}, got {config!r}.")
    if source not in ("local", "hub"):
        raise ValueError(f"Expected `source` to be 'local' or 'hub', got {source!r}.")
    if config == "mini":
        if path is not None or source != "local":
            raise ValueError("Config 'mini' is made here and takes no `path` and no `source`.")
        return
    if mini_options:
        raise ValueError(f"{', '.join(mini_options)} are for config 'mini', got them with {config!r}.")
    if split not in SPLITS:
        raise ValueError(f"Expected `split` to be one of {', '.join(SPLITS)}, got {split!r}.")
    if path is None:
        hint = "the id of a Hub repository" if source == "hub" else "a folder of label files, or one made by build"
        raise ValueError(
            f"Expected `path`, {hint}: MLLM-CompBench comes with no package and has no official Hub copy."
        )


def _load_parquet(
    folder: Path, config: str, split: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of a folder that `build_compbench` made."""
    files = sorted(map(str, folder.glob(f"data/{'*' if config == 'all' else config}/{split}-*.parquet")))
    if not files:
        raise ValueError(f"Expected Parquet files of {config} {split} in {str(folder)!r}, found none.")
    # By file names, not by folder: the cache of datasets does not tell folders of the same name apart.
    return datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming)


def _load_labels(path: str, config: str, split: str) -> datasets.Dataset:
    """One split of the authors' label files."""
    rows = [row for row in build_splits(read_label_folder(path))[split] if config in ("all", row["relativity"])]
    if not rows:
        raise ValueError(f"Expected labels of {config} in {path!r}, found none.")
    return build_dataset(rows)
