"""The JSON files of the released code: predictions, questions, ground truth, training conversations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_ava_bench.files import write_text

Entry = Mapping[str, Any]


def read_json(path: str | Path) -> Any:
    """Returns what a JSON file holds, or the list of lines of a `.jsonl` file.

    Raises:
        ValueError: if the file is not JSON.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Expected JSON in {path}, got something else: {error}.") from error


def read_entries(source: str | Path | Any) -> dict[str, Entry]:
    """Returns the entries of a file of predictions, questions or ground truth under their ids, in order.

    Three forms are in use: a list of entries with `question_id` (or `id`), `{"annotations": [such a list]}`, and
    `{question_id: entry}`.

    Args:
        source (`str`, `Path`, or what [`read_json`] returns): where the entries are.

    Raises:
        ValueError: for another form, an entry without an id, or an id that comes twice.

    Example:

    ```python
    >>> from hf_ava_bench.formats import read_entries
    >>> read_entries({"annotations": [{"question_id": 7, "answer": "4"}]})
    {'7': {'question_id': 7, 'answer': '4'}}

    ```
    """
    name = source if isinstance(source, (str, Path)) else "the given data"
    data = read_json(source) if isinstance(source, (str, Path)) else source
    if isinstance(data, dict) and "annotations" not in data:
        pairs: Iterable[tuple[Any, Any]] = data.items()
    else:
        rows = data["annotations"] if isinstance(data, dict) else data
        if not isinstance(rows, list):
            raise ValueError(f"Expected a list of entries in {name}, got {type(rows).__name__}.")
        pairs = [(_find_id(row, position, name), row) for position, row in enumerate(rows)]
    entries: dict[str, Entry] = {}
    for key, row in pairs:
        if not isinstance(row, dict):
            raise ValueError(f"Expected an object for entry {key!r} of {name}, got {row!r}.")
        if str(key) in entries:
            raise ValueError(f"The id {key!r} comes twice in {name}.")
        entries[str(key)] = row
    return entries


def _find_id(row: Any, position: int, name: object) -> Any:
    if isinstance(row, dict):
        for key in ("question_id", "id"):
            if row.get(key) not in (None, ""):
                return row[key]
    raise ValueError(f"Expected `question_id` or `id` in entry {position} of {name}, got {row!r}.")


def answers_of(entry: Entry) -> list[str]:
    """Returns the right answers of an entry: of `answers`, `answer`, `reference`, `text` or `conversations`."""
    if isinstance(entry.get("answers"), list) and entry["answers"]:
        return [str(item["answer"] if isinstance(item, dict) else item) for item in entry["answers"]]
    for key in ("answer", "reference", "text"):
        if entry.get(key) is not None:
            return [str(entry[key])]
    if entry.get("conversations"):
        return [split_conversation(entry["conversations"])[1]]
    raise ValueError(f"Expected an answer (`answer`, `answers`, `reference` or `text`) in {dict(entry)!r}.")


def prediction_of(entry: Entry) -> str | None:
    """Returns what the model wrote: `text`, `prediction` or `response`."""
    for key in ("text", "prediction", "response"):
        if key in entry:
            return None if entry[key] is None else str(entry[key])
    raise ValueError(f"Expected a prediction (`text`, `prediction` or `response`) in {dict(entry)!r}.")


def split_conversation(conversations: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Returns question and answer of one turn, without the placeholder of the image.

    Example:

    ```python
    >>> from hf_ava_bench.formats import split_conversation
    >>> split_conversation([{"from": "human", "value": "<image>\\nHow many?"}, {"from": "gpt", "value": "6"}])
    ('How many?', '6')

    ```
    """
    spoken = {turn["from"]: turn["value"] for turn in conversations[:2]}
    if set(spoken) != {"human", "gpt"}:
        raise ValueError(f"Expected one turn from 'human' and one from 'gpt', got {list(conversations)!r}.")
    return spoken["human"].replace("<image>", "").strip(), spoken["gpt"].strip()


def to_conversation(item: Mapping[str, Any], image: str) -> dict[str, Any]:
    """Returns an item of [`FEATURES`] as an entry of a released `train.json`."""
    turns = [("human", f"<image>\n{item['question']}"), ("gpt", item["answer"])]
    return {
        "id": item["id"],
        "image": image,
        "conversations": [{"from": who, "value": value} for who, value in turns],
    }


def to_question(item: Mapping[str, Any], image: str) -> dict[str, Any]:
    """Returns an item of [`FEATURES`] as an entry of a released `questions.json`."""
    return {"question_id": item["id"], "image": image, "text": item["question"], "category": item["source"]}


def write_json(path: str | Path, data: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(Path(path), json.dumps(data, indent=1, ensure_ascii=False) + "\n")
