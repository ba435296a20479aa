"""Files of an ensemble: written whole or not at all, and the same bytes for the same content."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, on the main process."""
    if not PartialState().is_main_process:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write tensors with strings that say what they belong to, on the main process."""
    if not PartialState().is_main_process:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    # One entry: safetensors writes several in an order that changes from run to run.
    about = {"about": json.dumps(metadata, sort_keys=True)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata=about)
    partial.replace(path)


def read_tensors(path: Path, metadata: dict[str, str]) -> dict[str, torch.Tensor] | None:
    """Read what `write_tensors` wrote, or None if there is nothing for this metadata."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        if file.metadata() != {"about": json.dumps(metadata, sort_keys=True)}:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)


def save_adapter(model: Any, folder: Path, card: str, metrics: Mapping[str, Any]) -> None:
    """Save a `PeftModel` as an ordinary adapter folder, with its card and `metrics.json`, in one step.

    A folder with `metrics.json` is whole; one without is not of this function, and is replaced. peft writes sets in an
    order that changes from run to run; here they are sorted, so that equal adapters are equal files.
    """
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    config = read_json(partial / "adapter_config.json")
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    write_json(partial / "adapter_config.json", config)
    write_text(partial / "README.md", card)
    write_json(partial / "metrics.json", metrics)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def is_saved(folder: Path) -> bool:
    """Whether `save_adapter` has written this folder."""
    return (folder / "metrics.json").exists()


def write_parquet(path: Path, table: Dataset) -> None:
    """Write a data set as Parquet, on the main process."""
    if not PartialState().is_main_process:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    table.to_parquet(str(partial))
    partial.replace(path)
