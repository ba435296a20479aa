"""What stands for a model in the name of a stored answer: its weights, and how its inputs are made."""

import hashlib
from pathlib import Path

_CHUNK = 1 << 22


def hash_weights(path: str) -> str:
    """Returns a hash of the safetensors files of a folder, empty for an id of the Hub (its commit names the weights).

    A folder may be written to again: a model that is trained further must not find the answers of the old one.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def hash_texts(*texts: str) -> str:
    """Returns a hash of texts, e.g. of configurations."""
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]
