"""Writes MLLM-CompBench as a folder of Parquet files that plain `load_dataset` reads."""

import json
from pathlib import Path
from typing import Any, Literal

import datasets

from hf_compbench.audit import AuditReport, audit_pairs
from hf_compbench.features import build_dataset
from hf_compbench.files import write_text
from hf_compbench.images import resolve_images
from hf_compbench.legacy import LabelFile
from hf_compbench.loading import build_splits, read_label_folder
from hf_compbench.sources import RELATIVITIES, SOURCES

ROW_GROUP = 100
"""Rows of a Parquet row group: small, so that a stream or a viewer starts at once."""
SHARD_BYTES = 300_000_000
"""Largest file of a split."""

_CARD = """---
license: other
task_categories: [visual-question-answering, image-text-to-text]
tags: [mllm-compbench, comparison, multi-image]
pretty_name: mllm-compbench
configs:
{configs}
---

# mllm-compbench

Made by `hf-compbench build`. {about}

| config | split | pairs |
|---|---|---|
{table}

{problems}
"""
_PASSED = "The audit of the clean splits (`audit.json`) passed."


def build_compbench(
    path: str | Path,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    accept_terms: bool = False,
    on_missing: Literal["error", "skip"] = "error",
    allow_leaks: bool = False,
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
        allow_leaks: write the clean splits although the audit of test against val finds answers that can be had
            without comparing images; what it found stands in `audit.json` and in the README either way.
        seed: seed of the clean splits.

    Returns:
        the number of pairs by config and split.

    Raises:
        ValueError: if the folder holds files, or the audit fails and `allow_leaks` is not set.

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
    audit = audit_pairs(splits["clean_test"], splits["clean_val"])
    if not allow_leaks:
        _require_clean(audit)
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
            write_shards(part, target / "data" / relativity, name)
    totals = {name: sum(by_split.get(name, 0) for by_split in counts.values()) for name in splits}
    counts["all"] = {name: total for name, total in totals.items() if total}
    about = "It holds labels only." if image_root is None else "It holds images that must not be passed on."
    write_text(target / "audit.json", json.dumps(audit.to_dict(), indent=1) + "\n")
    _write_card(target, counts, files, about, audit)
    return counts


def _require_clean(audit: AuditReport) -> None:
    try:
        audit.require_clean()
    except ValueError as error:
        raise ValueError(f"{error}\nPass allow_leaks=True to write the clean splits as they are.") from None


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


def write_shards(dataset: datasets.Dataset, folder: Path, name: str, max_bytes: int = SHARD_BYTES) -> None:
    """Writes `<name>-00000-of-0000n.parquet`: as few files below `max_bytes` as there can be, in small row groups,
    each whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    count = min(-(-dataset.data.nbytes // max_bytes) or 1, len(dataset))
    for number in range(count):
        path = folder / f"{name}-{number:05d}-of-{count:05d}.parquet"
        partial = path.with_suffix(".part")
        dataset.shard(count, number, contiguous=True).to_parquet(str(partial), batch_size=ROW_GROUP)
        partial.replace(path)


def _write_card(
    target: Path, counts: dict[str, dict[str, int]], files: list[LabelFile], about: str, audit: AuditReport
) -> None:
    lines = []
    failures = "\n".join(f"- {check}" for check in audit.failures)
    found = f"The audit of the clean splits (`audit.json`) failed:\n\n{failures}" if failures else _PASSED
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
    problems = (
        f"Terms of the images:\n\n{terms}\n\nEntries that held no comparison are listed in `skipped.json`.\n\n{found}"
    )
    write_text(target / "skipped.json", json.dumps(skipped, indent=1) + "\n")
    card = _CARD.format(configs="\n".join(lines), about=about, table=table, problems=problems)
    write_text(target / "README.md", card)
