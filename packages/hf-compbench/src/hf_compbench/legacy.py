"""Reads the label files of MLLM-CompBench in every form they were given out in, and says what is odd about each label.

The forms are those of the review-time repository and of the README of the release. Nothing is dropped in silence:
odd labels carry `issues`, and entries that hold no comparison at all are listed in `LabelFile.skipped`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compbench.features import build_row, mark_repeats
from hf_compbench.sources import NONE, SIDES, SIDES_OR_SAME, SOURCES

Entry = Mapping[str, Any]
ATTRIBUTE_TYPES = ("Size", "Color", "Pattern", "Texture", "Shape")
CARS_QUESTION = (
    "Based on these images, which car is newer in terms of its model year or release year? The term 'newer' is "
    "related to the year each car was manufactured or released, not its current condition or usage."
)
SOCCER_QUESTION = "These are two frames related to {action} in a soccer match. Which frame happens first?"
DIFFERENCE_QUESTION = "What is the most obvious difference between two images?"

# Where the paths of each source begin in the authors' folder of images.
_ANCHORS = {
    "mit_states": "transformed_states",
    "fashionpedia": "fashionpedia",
    "vaw": "vaw",
    "cub_200_2011": "cub_200_2011",
    "wildfish": "wildfish",
    "magic_brush": "magic_brush",
    "spot_the_diff": "spot-the-diff",
    "celeba": "celeba",
    "fer_2013": "fer-2013",
    "soccernet": "soccernet",
    "comp_cars": "comp_cars",
    "nyu_depth_v2": "nyu_depth_v2",
    "vqav2": "vqav2",
    "q_bench2": "q-bench2",
}


@dataclass(frozen=True)
class LabelFile:
    """The rows of one label file in file order, and the (index, reason) of entries that are no comparison."""

    source: str
    rows: list[dict[str, Any]]
    skipped: list[tuple[int, str]]


def normalise_path(path: str, source: str) -> tuple[str, list[str]]:
    """Returns the path below the folder of images, and what was odd about it.

    Backslashes, absolute machine paths and a missing first folder are mended; steps upwards are taken out.

    Example:

    ```python
    >>> from hf_compbench.legacy import normalise_path
    >>> normalise_path("C:\\\\data\\\\cub_200_2011\\\\images\\\\a.jpg", "cub_200_2011")
    ('cub_200_2011/images/a.jpg', ['windows_path', 'absolute_path'])

    ```
    """
    issues, anchor = [], _ANCHORS[source]
    if "\\" in path:
        path, issues = path.replace("\\", "/"), ["windows_path"]
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or re.match(r"^[A-Za-z]:", path):
        issues.append("absolute_path")
    if ".." in parts:
        issues.append("unsafe_path")
        parts = [part for part in parts if part != ".."]
    lowered = [part.casefold() for part in parts]
    if anchor in lowered:
        last = len(lowered) - 1 - lowered[::-1].index(anchor)  # a machine's folders may have the same name
        parts = [anchor, *parts[last + 1 :]]
    else:
        issues.append("missing_prefix")
        parts = [anchor, *(part for part in parts if not part.endswith(":"))]
    return "/".join(parts), issues


def split_options(text: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the options of a comma list, None first, and what was odd: blanks and duplicates are taken out.

    Example:

    ```python
    >>> from hf_compbench.legacy import split_options
    >>> split_options("car, walking  people,, Car,")
    (['None', 'car', 'walking people'], ['blank_option', 'duplicate_option'])

    ```
    """
    raw = text.split(",") if isinstance(text, str) else list(text)
    options, seen, issues = [NONE], {NONE.casefold()}, []
    for item in raw:
        option = " ".join(str(item).split())
        if not option:
            issues.append("blank_option")
        elif option.casefold() not in seen:
            options.append(option)
            seen.add(option.casefold())
        elif option.casefold() != NONE.casefold():
            issues.append("duplicate_option")
    return options, sorted(set(issues))


def _first(entry: Entry, *names: str) -> Any:
    """The first of the fields that is there and not empty."""
    return next((entry[name] for name in names if entry.get(name) not in (None, "", [])), None)


def _match(text: Any, options: Sequence[str]) -> str:
    """The option that a label means, but for case and blanks; the label itself where it is none."""
    wanted = " ".join(str(text or "").split())
    return next((option for option in options if option.casefold() == wanted.casefold()), wanted)


def _sides(entry: Entry, source: str) -> dict[str, Any]:
    options = SIDES_OR_SAME if source == "vqav2" else SIDES
    kind = str(entry.get("type") or "")
    relativity = "state" if kind == "State" else SOURCES[source].relativity
    issues = ["unknown_type"] if kind and kind not in (*ATTRIBUTE_TYPES, "State") else []
    question = CARS_QUESTION if source == "comp_cars" else str(entry.get("question") or "").strip()
    return {"options": options, "question": question, "subtype": kind, "relativity": relativity, "issues": issues}


def _soccer(entry: Entry, source: str) -> dict[str, Any]:
    del source
    action = str(entry.get("action") or "")
    return {"options": (*SIDES, NONE), "question": SOCCER_QUESTION.format(action=action), "subtype": action}


def _difference(entry: Entry, source: str) -> dict[str, Any]:
    del source
    listed = _first(entry, "options", "Modified_option", "GPT_option", "gpt_extract_objects_gt") or ""
    options, issues = split_options(listed)
    if str(entry.get("Quality") or "accept") != "accept":
        issues.append("quality_bad")
    return {"options": options, "question": DIFFERENCE_QUESTION, "issues": issues}


def _quality(entry: Entry, source: str) -> dict[str, Any]:
    del source
    options = [" ".join(str(option).split()) for option in (_first(entry, "options", "option") or [])]
    issues = ["single_option"] if len(options) < 2 else []
    return {"options": options, "question": str(entry.get("question") or "").strip(), "issues": issues}


_READERS: dict[str, Callable[[Entry, str], dict[str, Any]]] = {
    "soccernet": _soccer,
    "magic_brush": _difference,
    "spot_the_diff": _difference,
    "q_bench2": _quality,
}
_IMAGE_FIELDS = (("image_1", "image_2"), ("path_input", "path_output"), ("left", "right"))
_ANSWER_FIELDS = ("answer", "Answer", "Answeer")
_KNOWN = {name for pair in _IMAGE_FIELDS for name in pair} | set(_ANSWER_FIELDS) | {"image", "question", "options"}


def normalise_entry(entry: Entry, source: str) -> dict[str, Any] | str:
    """Returns the canonical row of one entry, or in words why it holds no comparison."""
    if not entry:
        return "empty entry"
    paths = next(((entry[a], entry[b]) for a, b in _IMAGE_FIELDS if entry.get(a) and entry.get(b)), None)
    if paths is None and entry.get("image"):
        paths = (entry["image"], "")
    answer = _first(entry, *_ANSWER_FIELDS)
    if paths is None or answer is None:
        return f"no {'images' if paths is None else 'answer'} in an entry with {', '.join(sorted(map(str, entry)))}"
    read = _READERS.get(source, _sides)(entry, source)
    if not read["question"]:
        return "no question"
    keys, issues = [], list(read.get("issues", ()))
    for path in paths:
        key, odd = normalise_path(str(path), source) if path else ("", [])
        keys.append(key)
        issues += odd
    answer_text = _match(answer, read["options"])
    if answer_text not in read["options"]:
        issues.append("answer_not_in_options")
    if keys[0] == keys[1]:
        issues.append("self_pair")
    similarity, odd = _read_similarity(entry)
    issues += odd
    return build_row(
        source=source,
        relativity=read.get("relativity", SOURCES[source].relativity),
        keys=(keys[0], keys[1]),
        question=read["question"],
        options=read["options"],
        answer_text=answer_text,
        subtype=read.get("subtype", ""),
        similarity=similarity,
        issues=sorted(set(issues)),
        meta={str(key): value for key, value in entry.items() if key not in _KNOWN},
    )


def _read_similarity(entry: Entry) -> tuple[float | None, list[str]]:
    """The similarity of the images, and whether it was no number."""
    value = _first(entry, "CLIP_similarity", "CLIP")
    try:
        return (None if value is None else float(value)), []
    except (TypeError, ValueError):
        return None, ["bad_similarity"]


def read_labels(path: Path, source: str) -> LabelFile:
    """Returns the labels of one JSON file (a list of objects), repeats marked by [`mark_repeats`].

    Raises:
        ValueError: if the source is unknown or the file holds no list.
    """
    if source not in SOURCES:
        raise ValueError(f"Expected `source` to be one of {', '.join(SOURCES)}, got {source!r}.")
    entries = read_entries(path)
    rows, skipped = [], []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            skipped.append((index, f"expected an object, got {type(entry).__name__}"))
            continue
        row = normalise_entry(entry, source)
        if isinstance(row, str):
            skipped.append((index, row))
        else:
            rows.append(row)
    return LabelFile(source, mark_repeats(rows), skipped)


def read_entries(path: Path) -> list[Any]:
    """Returns the entries of a JSON list, or of a file with one JSON object on each line."""
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"Expected a JSON list of labels in {path}, got: {error}.") from None
    if not isinstance(entries, list):
        raise ValueError(f"Expected a JSON list of labels in {path}, got {type(entries).__name__}.")
    return entries


def find_label_files(folder: Path) -> dict[str, Path]:
    """Returns for each source its label file: `<label folder>.json`, `<source>.json`, or the one JSON in its folder.

    The label folders are those of the authors' release, e.g. `cub_label`. Other files are left alone; a folder with
    several JSON files is an error, because which one counts cannot be guessed.
    """
    found = {}
    for source in SOURCES.values():
        names = [folder / f"{stem}.json" for stem in (source.label_folder, source.name)]
        names += sorted((folder / source.label_folder).glob("*.json"))
        present = [path for path in names if path.is_file()]
        if len(present) > 1:
            listed = ", ".join(path.name for path in present)
            raise ValueError(
                f"Expected one label file of {source.name} in {folder}, got {listed}; keep the final one."
            )
        if present:
            found[source.name] = present[0]
    if not found:
        expected = ", ".join(f"{source.label_folder}.json" for source in SOURCES.values())
        raise ValueError(f"Expected label files ({expected}; or folders of these names) in {folder}, found none.")
    return found
