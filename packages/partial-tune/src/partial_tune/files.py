"""Writes files whole or not at all, and reads arrays of logits and labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Writes text through a temporary file in the same folder."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON through a temporary file in the same folder."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes safetensors through a temporary file in the same folder."""
    part = path.with_name(path.name + ".part")
    save_file(dict(tensors), part, metadata={"format": "pt"})
    part.replace(path)


def read_array(path: Path, name: str) -> Any:
    """Returns one array of a file: the only one of an `.npy`, that called `name` of a `.safetensors`.

    Raises:
        ValueError: for another kind of file, a damaged one, one with pickled objects, or one without that name.
    """
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except EOFError as error:
            raise ValueError(f"Expected an array in {path}, got an empty file.") from error
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"Expected tensors in {path}, got a damaged file ({error}).") from error
        if name not in tensors:
            raise ValueError(f"Expected a tensor {name!r} in {path}, got {', '.join(tensors) or 'none'}.")
        return tensors[name]
    raise ValueError(f"Expected a .npy or .safetensors file, got {path}.")
