"""Results on disk: rows as JSON lines that a stopped run goes on with, embeddings as safetensors, taxa from CSV."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor
from transformers.utils.logging import tqdm

from taxaclip.images import embed_images, read_batches
from taxaclip.taxonomy import RANKS, TaxonPath


def read_taxa(path: Path) -> list[TaxonPath]:
    """Returns the taxa of a CSV file with a column for each rank and, optionally, `common_name`.

    Args:
        path (`Path`): the file, in UTF-8.

    Raises:
        ValueError: if a column is missing, or a row names no taxon; the message has the row's line.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [rank for rank in RANKS if rank not in (reader.fieldnames or [])]:
            raise ValueError(
                f"Expected the columns {', '.join(RANKS)} in {path}, but {', '.join(missing)} are missing."
            )
        taxa = []
        for row in reader:
            try:
                names = tuple((row[rank] or "").strip() for rank in RANKS)
                taxa.append(TaxonPath(names, (row.get("common_name") or "").strip()))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    return taxa


def finished_names(path: Path) -> set[str]:
    """Returns the names of the images whose rows a file of JSON lines holds; half a line at its end is cut off.

    Args:
        path (`Path`): the file; it need not exist.

    Raises:
        ValueError: if a whole line is not a row.
    """
    if not path.exists():
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    names: set[str] = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            names.add(json.loads(line)["file_name"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"Expected rows of an earlier run in {path}, but line {number} is none.") from None
    rest = text[len(whole) :]
    if rest:
        begin = '{"file_name": '
        if not (rest.startswith(begin) or begin.startswith(rest)):
            raise ValueError(
                f"Expected rows of an earlier run in {path}, but it ends in something else; name another."
            )
        path.write_text(whole, encoding="utf-8")
    return names


def append_jsonl(path: Path, results: Iterable[list[dict[str, Any]]], names: Sequence[str]) -> None:
    """Appends `{"file_name": name, "rows": [...]}` for each image: a whole line, or none where the run is stopped.

    Args:
        path (`Path`): the file.
        results (iterable of lists of rows): in the order of `names`.
        names (sequence of `str`): the images.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for name, rows in zip(names, tqdm(results, total=len(names), desc="images", disable=None), strict=True):
            file.write(json.dumps({"file_name": name, "rows": rows}) + "\n")
            file.flush()


def write_embeddings(
    path: Path, model: CLIPModel, processor: CLIPProcessor, images: Sequence[Path], batch_size: int
) -> None:
    """Writes the normalised embeddings of images as safetensors, with their names and those of unreadable ones.

    Args:
        path (`Path`): the file; written whole or not at all.
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        images (sequence of `Path`): the images.
        batch_size (`int`): images at a time.
    """
    parts = [torch.zeros(0, model.visual_projection.out_features)]
    names: list[str] = []
    errors: dict[str, str] = {}
    batches = read_batches(images, batch_size)
    for entries, pictures in tqdm(batches, total=-(-len(images) // batch_size), desc="batches", disable=None):
        errors |= {name: error for name, error in entries if error is not None}
        names += [name for name, error in entries if error is None]
        if pictures:
            parts.append(embed_images(model, processor, pictures))
    partial = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"embeddings": torch.cat(parts)}, partial, {"names": json.dumps(names), "errors": json.dumps(errors)})
    partial.replace(path)
