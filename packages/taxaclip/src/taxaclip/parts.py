"""What a long job has done so far: numbered safetensors files, each written whole, so that a stopped job goes on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Parts:
    """Numbered safetensors files in a folder, each written whole: what a stopped job has done.

    Args:
        folder (`Path`): the folder; parts of another job in it are removed.
        job (sequence of `str`): all that the parts depend on.

    Raises:
        FileExistsError: if there is something else than parts.
    """

    def __init__(self, folder: Path, job: Sequence[str]):
        self.folder = folder
        key, file = hashlib.sha256(json.dumps(list(job)).encode()).hexdigest(), folder / "job.sha256"
        if not (file.exists() and file.read_text(encoding="utf-8") == key):
            if folder.exists() and not (folder.is_dir() and all(map(_is_part, folder.iterdir()))):
                raise FileExistsError(f"Expected a new folder, or one of a stopped job, got {folder}; name another.")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            file.write_text(key, encoding="utf-8")

    def get(self, number: int, compute: Callable[[], tuple[torch.Tensor, dict[str, str]]]) -> torch.Tensor:
        """Returns a part's tensor, from its file if there is one.

        Args:
            number (`int`): the part.
            compute (callable): gives the tensor and texts to keep with it, where there is no file yet.
        """
        path = self.folder / f"{number:08d}.safetensors"
        if not path.exists():
            tensor, texts = compute()
            partial = path.with_suffix(".part")
            save_file({"embeddings": tensor}, partial, texts)
            partial.replace(path)
        with safe_open(path, "pt") as file:
            stored: torch.Tensor = file.get_tensor("embeddings")
        return stored

    def texts(self, number: int) -> dict[str, str]:
        """Returns the texts that were kept with a part.

        Args:
            number (`int`): the part.
        """
        with safe_open(self.folder / f"{number:08d}.safetensors", "pt") as file:
            return dict(file.metadata() or {})

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)


def _is_part(path: Path) -> bool:
    return path.name == "job.sha256" or (path.suffix in (".safetensors", ".part") and path.stem.isdigit())
