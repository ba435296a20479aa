"""Loads MLLM-CompBench and mini-CompBench, and writes them as Parquet folders."""

import json
from pathlib import Path
from typing import Any, Literal

import datasets

from hf_compbench.features import build_dataset
from hf_compbench.groups import assign_groups
from hf_compbench.images import resolve_images
from hf_compbench.legacy import LabelFile, find_label_files, read_labels
from hf_compbench.mini import build_mini
from hf_compbench.sources import RELATIVITIES, SOURCES
from hf_compbench.splits import SPLITS, split_clean, split_official

logger = datasets.logging.get_logger(__name__)
CONFIGS = ("mini", "all", *RELATIVITIES)
ROW_GROUP = 100
"""Rows of a Parquet row group: small, so that a stream or a viewer starts at once."""

_CARD = """---
license: other
task_categories: [visual-question-answering, image-text-to-text]
tags: [mllm-compbench, comparison, multi-image]
pretty_name: {name}
configs:
{configs}
---

# {name}

Made by `hf-compbench build`. {about}

| config | split | pairs |
|---|---|---|
{table}

{problems}
"""


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
    authors' release or from a folder or a Hub repository that [`build_compbench`] made, images from your own copies.

    Args:
        config: `"mini"`, `"all"`, or a kind of comparison: `"attribute"`, `"existence"`, `"state"`, `"emotion"`,
            `"temporality"`, `"spatiality"`, `"quantity"`, `"quality"`.
        split: `"train"`, `"validation"`, `"test"` or `"heldout"` of mini; else `"official_test"`, `"official_val"`
            (the authors' split, in their order), `"clean_test"` or `"clean_val"` (no shared images, no duplicates,
            sides balanced for each question).
        source: `"local"`: `path` is a folder of label JSON files or of Parquet made by [`build_compbench`];
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
    if config not in CONFIGS:
        raise ValueError(f"Expected `config` to be one of {', '.join(CONFIGS)}, got {config!r}.")
    if source not in ("local", "hub"):
        raise ValueError(f"Expected `source` to be 'local' or 'hub', got {source!r}.")
    if config == "mini":
        if path is not None or source != "local":
            raise ValueError("Config 'mini' is made here and takes no `path` and no `source`.")
        mini = build_mini(split, photos=image_root, **mini_options)
        return mini.to_iterable_dataset() if streaming else mini
    if mini_options:
        raise ValueError(f"{', '.join(mini_options)} are for config 'mini', got them with {config!r}.")
    if split not in SPLITS:
        raise ValueError(f"Expected `split` to be one of {', '.join(SPLITS)}, got {split!r}.")
    if path is None:
        hint = "the id of a Hub repository" if source == "hub" else "a folder of label files, or one made by build"
        raise ValueError(
            f"Expected `path`, {hint}: MLLM-CompBench comes with no package and has no official Hub copy."
        )
    is_streamed = streaming and image_root is None
    if source == "hub":
        loaded = datasets.load_dataset(str(path), config, split=split, streaming=is_streamed)
    elif any(Path(path).glob("data/*/*.parquet")):
        files = sorted(map(str, Path(path).glob(f"data/{'*' if config == 'all' else config}/{split}-*.parquet")))
        if not files:
            raise ValueError(f"Expected Parquet files of {config} {split} in {str(path)!r}, found none.")
        # By file names, not by folder: the cache of datasets does not tell folders of the same name apart.
        loaded = datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=is_streamed)
    else:
        rows = [row for row in build_splits(read_label_folder(path))[split] if config in ("all", row["relativity"])]
        if not rows:
            raise ValueError(f"Expected labels of {config} in {str(path)!r}, found none.")
        loaded = build_dataset(rows)
        if is_streamed:
            return loaded.to_iterable_dataset()
    if image_root is not None:
        loaded = resolve_images(loaded, image_root, accept_terms=accept_terms, on_missing=on_missing)
        return loaded.to_iterable_dataset() if streaming else loaded
    return loaded


def build_compbench(
    path: str | Path,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    accept_terms: bool = False,
    on_missing: Literal["error", "skip"] = "error",
    seed: int = 0,
) -> dict[str, dict[str, int]]:
    """Writes a folder that loads with plain `datasets.load_dataset(output_dir, config, split=split)`.

    One config for each kind of comparison, and `all`; official and clean splits. Without `image_root` it holds labels
    only and may be passed on; with it, your images are written into the Parquet files, for your own use.

    Args:
        path: folder with the authors' label files.
        output_dir: is made; must not hold a set yet. Plain `load_dataset` caches by the name of the folder alone: give
            a labels-only and a full folder different names.
        image_root, accept_terms, on_missing: see [`resolve_images`].
        seed: seed of the clean splits.

    Returns:
        the number of pairs by config and split.

    Example:

    ```python
    >>> import json, pathlib, tempfile
    >>> import datasets
    >>> from hf_compbench import build_compbench
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> labels = [{"image_1": f"celeba/{i}.jpg", "image_2": f"celeba/{i + 100}.jpg", "answer": "Left",
    ...            "question": "Which person smiles more?"} for i in range(10)]
    >>> _ = (folder / "celebA_label.json").write_text(json.dumps(labels))
    >>> build_compbench(folder, folder / "out")["emotion"]
    {'official_test': 8, 'official_val': 2, 'clean_test': 8, 'clean_val': 2}
    >>> ds = datasets.load_dataset(str(folder / "out"), "emotion", split="clean_test", cache_dir=str(folder / "cache"))
    >>> sorted(ds["answer"])
    [0, 0, 0, 0, 1, 1, 1, 1]

    ```
    """
    target = Path(output_dir)
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"Expected a new or empty folder to write to, but {str(output_dir)!r} holds files.")
    files = read_label_folder(path)
    splits = build_splits(files, seed)
    counts: dict[str, dict[str, int]] = {}
    for relativity in RELATIVITIES:
        for name, members in splits.items():
            rows = [row for row in members if row["relativity"] == relativity]
            if not rows:
                continue
            part = build_dataset(rows)
            if image_root is not None:
                part = resolve_images(part, image_root, accept_terms=accept_terms, on_missing=on_missing)
                part = _embed_images(part, f"Images of {relativity} {name}")
            counts.setdefault(relativity, {})[name] = len(part)
            write_parquet(part, target / "data" / relativity / f"{name}-00000-of-00001.parquet")
    totals = {name: sum(by_split.get(name, 0) for by_split in counts.values()) for name in splits}
    counts["all"] = {name: total for name, total in totals.items() if total}
    about = "It holds labels only." if image_root is None else "It holds images that must not be passed on."
    _write_card(target, "mllm-compbench", counts, files, about)
    return counts


def _embed_images(dataset: datasets.Dataset, desc: str) -> datasets.Dataset:
    """The dataset with the bytes of its image files in the table, unchanged."""
    sides = ("image_1", "image_2", "composite")

    def embed(row: dict[str, Any]) -> dict[str, Any]:
        paths = {side: Path(row[side]["path"]) for side in sides if row[side]}
        return {side: {"path": path.name, "bytes": path.read_bytes()} for side, path in paths.items()}

    for side in sides:
        dataset = dataset.cast_column(side, datasets.Image(decode=False))
    dataset = dataset.map(embed, desc=desc)
    for side in sides:
        dataset = dataset.cast_column(side, datasets.Image())
    return dataset


def write_parquet(dataset: datasets.Dataset, path: Path) -> None:
    """Writes a dataset in small row groups, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    dataset.to_parquet(str(partial), batch_size=ROW_GROUP)
    partial.replace(path)


def _write_card(
    target: Path, name: str, counts: dict[str, dict[str, int]], files: list[LabelFile], about: str
) -> None:
    lines = []
    for config, by_split in counts.items():
        folder = "*" if config == "all" else config
        lines.append(f"- config_name: {config}")
        if config == "all":
            lines.append("  default: true")
        lines.append("  data_files:")
        for split in by_split:
            lines += [f"  - split: {split}", f"    path: data/{folder}/{split}-*.parquet"]
    table = "\n".join(f"| {c} | {split} | {n} |" for c, by_split in counts.items() for split, n in by_split.items())
    skipped = {
        file.source: [{"entry": i, "reason": reason} for i, reason in file.skipped] for file in files if file.skipped
    }
    terms = "\n".join(f"- {file.source}: {SOURCES[file.source].terms}" for file in files)
    problems = f"Terms of the images:\n\n{terms}\n\nEntries that held no comparison are listed in `skipped.json`."
    (target / "skipped.json").write_text(json.dumps(skipped, indent=1) + "\n", encoding="utf-8")
    card = _CARD.format(name=name, configs="\n".join(lines), about=about, table=table, problems=problems)
    (target / "README.md").write_text(card, encoding="utf-8")
