"""Reads the prediction files of the authors' review-time release, to score them without a model."""

from pathlib import Path
from typing import Any

from hf_compbench.features import mark_repeats
from hf_compbench.legacy import normalise_entry, read_entries
from hf_compbench.sources import SOURCES

_SUFFIX = "_answer"


def read_predictions(path: str | Path, source: str, model: str | None = None) -> list[dict[str, Any]]:
    """Returns the responses of a released prediction file, found again by the ids of the labels.

    Such a file repeats the labels, each with a reply as `<model>_answer`: a JSON list (`gpt`, `gemini`) or JSON lines
    (`llava`, `vila`). It holds test and val; [`hf_compbench.score`] takes what belongs to its dataset. Errors of an
    API that a file holds in the place of an answer stay texts that name no option, wrong as in the authors' scripts.

    Args:
        path: the file, e.g. `results/cub/0_1000_gpt.json`.
        source: name of the source, e.g. `"cub_200_2011"`.
        model: whose replies, where a file holds several.

    Raises:
        ValueError: if the source is unknown, or the file holds replies of no model or of several.

    Example:

    ```python
    >>> import json, pathlib, tempfile
    >>> from hf_compbench import read_predictions
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "0_141_gpt.json"
    >>> entry = {"image_1": "celeba/1.jpg", "image_2": "celeba/2.jpg", "question": "Which person smiles more?",
    ...          "answer": "Left", "gpt_answer": "Right"}
    >>> _ = path.write_text(json.dumps([entry]))
    >>> [(response["model"], response["reply"]) for response in read_predictions(path, "celeba")]
    [('gpt', 'Right')]

    ```
    """
    if source not in SOURCES:
        raise ValueError(f"Expected `source` to be one of {', '.join(SOURCES)}, got {source!r}.")
    entries = [entry for entry in read_entries(Path(path)) if isinstance(entry, dict)]
    names = sorted({name[: -len(_SUFFIX)] for entry in entries for name in entry if name.endswith(_SUFFIX)})
    if model is None and len(names) != 1:
        raise ValueError(f"Expected replies of one model in {path}, got those of {names}; pass `model`.")
    chosen = model or names[0]
    if chosen not in names:
        raise ValueError(f"Expected replies of one of {names} in {path}, got `model` {chosen!r}.")
    read = [(entry, normalise_entry(entry, source)) for entry in entries]
    usable = [(entry, row) for entry, row in read if not isinstance(row, str)]
    rows = mark_repeats([row for _, row in usable])
    return [
        {"id": row["id"], "order": "12", "reply": str(entry[f"{chosen}{_SUFFIX}"]), "model": chosen}
        for (entry, _), row in zip(usable, rows, strict=True)
        if entry.get(f"{chosen}{_SUFFIX}") is not None
    ]
