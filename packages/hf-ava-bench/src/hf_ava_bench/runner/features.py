"""Tokens of all images, computed once: a tower is frozen and images are not augmented."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.utils import tqdm
from safetensors.torch import load_file, save_file

from hf_ava_bench.data import hash_image
from hf_ava_bench.runner.towers import Tower

SHARD = 256
"""Images in one file; an interrupted run goes on at the first one that is missing."""


def compute_features(
    table: datasets.Dataset,
    tower: Tower,
    folder: str | Path | None = None,
    *,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float16,
    progress: bool = True,
) -> torch.Tensor:
    """Returns the tokens of all images of a table, `(num_rows, num_tokens, width)`, from the cache where they are.

    Files are named by what can change their content: the bytes of the images, the answers for an oracle, and the
    tower's `key`, which covers weights, layer, frame and resolution.

    Args:
        table (`datasets.Dataset`): items.
        tower (`Tower`): the tower.
        folder (`str` or `Path`, *optional*): where the files are kept; nothing is if not given.
        batch_size (`int`, defaults to 32): images that are encoded at once.
        dtype (`torch.dtype`, defaults to `torch.float16`): how tokens are stored.
        progress (`bool`, defaults to `True`): whether to show a bar.
    """
    stored = table.cast_column("image", datasets.Image(decode=False))
    shards = []
    starts = range(0, len(table), SHARD)
    for start in tqdm(starts, desc=f"{tower.name} tokens", unit="shard", disable=not progress):
        stop = min(start + SHARD, len(table))
        key = _shard_key(stored, tower, start, stop, dtype)
        path = None if folder is None else Path(folder) / f"{key}.safetensors"
        if path is not None and path.exists():
            shards.append(load_file(path)["tokens"])
            continue
        tokens = torch.cat(list(_encode(table, tower, start, stop, batch_size))).to(dtype)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            save_file({"tokens": tokens.contiguous()}, partial)
            partial.replace(path)
        shards.append(tokens)
    return torch.cat(shards)


def _encode(table: Any, tower: Tower, start: int, stop: int, batch_size: int) -> Iterator[torch.Tensor]:
    for first in range(start, stop, batch_size):
        batch = table[first : min(first + batch_size, stop)]
        yield tower.encode(batch["image"], batch["answer"])


def _shard_key(stored: Any, tower: Tower, start: int, stop: int, dtype: torch.dtype) -> str:
    digest = hashlib.sha256(f"{tower.key} {dtype}".encode())
    for row in stored.select(range(start, stop)):
        digest.update(hash_image(row["image"]).encode())
        if tower.name == "oracle":
            digest.update(row["answer"].encode())
    return digest.hexdigest()
