"""Embeddings on disk, made part by part so that a stopped run goes on, and taxa as CSV."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor
from transformers.utils.logging import tqdm

from taxaclip.images import embed_images, read_batches
from taxaclip.parts import Parts
from taxaclip.provenance import hash_model, hash_processor
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


def write_embeddings(
    path: Path, model: CLIPModel, processor: CLIPProcessor, images: Sequence[Path], batch_size: int
) -> None:
    """Writes the normalised embeddings of images as safetensors, with their names and those of unreadable ones.

    Batches are kept beside the file, in `.<name>.parts`, until all are done: a stopped run goes on with the next one.

    Args:
        path (`Path`): the file; written whole or not at all.
        model (`CLIPModel`): any CLIP.
        processor (`CLIPProcessor`): its processor.
        images (sequence of `Path`): the images.
        batch_size (`int`): images at a time.

    Raises:
        ValueError: for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    job = [hash_model(model), hash_processor(processor), str(batch_size), *map(str, images)]
    parts = Parts(path.with_name(f".{path.name}.parts"), job)
    tensors = [torch.zeros(0, model.visual_projection.out_features)]
    names: list[str] = []
    errors: dict[str, str] = {}
    for number in tqdm(range(-(-len(images) // batch_size)), desc="batches", disable=None):
        batch = images[number * batch_size : (number + 1) * batch_size]
        tensors.append(parts.get(number, lambda batch=batch: _embed_batch(model, processor, batch)))  # type: ignore[misc]
        texts = parts.texts(number)
        names += json.loads(texts["names"])
        errors |= json.loads(texts["errors"])
    partial = path.with_name(f".{path.name}.part")
    save_file({"embeddings": torch.cat(tensors)}, partial, {"names": json.dumps(names), "errors": json.dumps(errors)})
    partial.replace(path)
    parts.remove()


def _embed_batch(
    model: CLIPModel, processor: CLIPProcessor, batch: Sequence[Path]
) -> tuple[torch.Tensor, dict[str, str]]:
    ((entries, pictures),) = read_batches(batch, len(batch))
    names = [name for name, error in entries if error is None]
    errors = {name: error for name, error in entries if error is not None}
    return embed_images(model, processor, pictures), {"names": json.dumps(names), "errors": json.dumps(errors)}
