"""What made a result: versions, hashes of model and index, arguments, beginning and end, as one JSON file."""

import hashlib
import json
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip.cards import CARD

LIBRARIES = ("taxaclip", "torch", "transformers", "safetensors", "pyarrow", "pillow")
NOT_HASHED = ("_name_or_path", "transformers_version")  # of a configuration: where it was, not what it is


def hash_model(model: CLIPModel) -> str:
    """Returns the SHA-256 of a model's configuration and weights, wherever they were read from and are.

    Args:
        model (`CLIPModel`): the model.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_HASHED}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_processor(processor: CLIPProcessor) -> str:
    """Returns the SHA-256 of what a processor does with images and texts.

    Args:
        processor (`CLIPProcessor`): the processor.
    """
    parts = (processor.image_processor.to_json_string(), processor.tokenizer.backend_tokenizer.to_str())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file.

    Args:
        path (`Path`): the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_folder(folder: Path) -> str:
    """Returns the SHA-256 of the names and contents of the files of a folder, but for its card.

    Args:
        folder (`Path`): the folder, without folders in it.
    """
    lines = (f"{path.name} {hash_file(path)}" for path in sorted(folder.iterdir()) if path.name != CARD)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RunLog:
    """A JSON file about one run, written when it begins and again when it ends.

    A run that was killed has no `ended`; one that failed has an `error`. Used as a context manager.

    Args:
        path (`Path`, *optional*): the file; nothing is written without it.
        command (`str`): what runs.
        arguments (`dict`): with what arguments.
    """

    def __init__(self, path: Path | None, command: str, arguments: dict[str, Any]):
        self.path = path
        self.entries: dict[str, Any] = {
            "command": command,
            "arguments": {name: _plain(value) for name, value in arguments.items()},
            "versions": {name: found for name in LIBRARIES if (found := _version(name))},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "started": _now(),
            "ended": None,
        }

    def add(self, **entries: Any) -> None:
        """Adds entries, which are written at the end.

        Args:
            entries: names and plain values.
        """
        self.entries |= entries

    def __enter__(self) -> "RunLog":
        """Writes what is known at the beginning."""
        self._write()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Writes when it ended, and the error if there was one."""
        self.add(ended=_now(), **({"error": f"{type(error).__name__}: {error}"} if error is not None else {}))
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.part")
        partial.write_text(json.dumps(self.entries, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
