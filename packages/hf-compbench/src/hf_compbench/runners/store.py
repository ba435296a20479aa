"""Responses on disk: one JSON line each, synced before the next question, read back after any crash."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ResponseStore:
    """An append-only file of responses, found by their key.

    A line that a crash tore is dropped and written anew. Two processes must not write to one file; `run_model` gives
    each its own.

    Args:
        path: the JSONL file; its folder is made.

    Example:

    ```python
    >>> import pathlib, tempfile
    >>> from hf_compbench.runners import ResponseStore
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "responses.jsonl"
    >>> with ResponseStore(path) as store:
    ...     store.append({"key": "k", "id": "a", "reply": "Left"})
    >>> with ResponseStore(path) as store:
    ...     print("k" in store, store["k"]["reply"])
    True Left

    ```
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._responses = {response["key"]: response for response in _read(self.path, mend=True)}
        self._file = self.path.open("a", encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        response = self._responses.get(key)
        return response is not None and response.get("status", "ok") == "ok"  # errors are asked again

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._responses[key]

    def append(self, response: dict[str, Any]) -> None:
        """Adds a response; it is on disk when this returns."""
        self._file.write(json.dumps(response, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._responses[response["key"]] = response

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "ResponseStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read(path: Path, *, mend: bool = False) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; with `mend` a torn end is cut off the file."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data) and mend:
        with path.open("r+b") as file:
            file.truncate(whole)
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise ValueError(f"Expected JSON in line {number} of {path}; move the file away to start anew.") from None


def read_responses(path: str | Path) -> list[dict[str, Any]]:
    """Returns the responses of a file, or of all JSONL files of a folder, to be scored anew without a model.

    Of several responses with the same key the last counts.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    root = Path(path)
    paths = sorted(root.glob("*.jsonl")) if root.is_dir() else [root]
    if not paths or not all(file.is_file() for file in paths):
        raise FileNotFoundError(f"Expected a JSONL file of responses, or a folder of them, got {str(path)!r}.")
    found: dict[str, dict[str, Any]] = {}
    for file in paths:
        for response in _read(file):
            found[response.get("key", f"{file}:{len(found)}")] = response
    return list(found.values())
