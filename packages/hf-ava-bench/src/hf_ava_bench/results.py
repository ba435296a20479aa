"""From files of predictions and answers, or a table of items, to a typed result."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets

from hf_ava_bench.abilities import find_ability
from hf_ava_bench.files import hash_file
from hf_ava_bench.formats import Entry, answers_of, prediction_of, read_entries
from hf_ava_bench.scoring import Score, compute_score

SCHEMA = "hf-ava-bench/result/1"
LIBRARIES = ("hf-ava-bench", "numpy", "datasets", "evaluate", "pillow")


def score_files(
    predictions: str | Path,
    ground_truth: str | Path | None = None,
    *,
    ability: str | None = None,
    values: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Returns the result of a predictions file as plain JSON types, one score for each ability in it.

    Args:
        predictions (`str` or `Path`):
            JSON or JSON lines in the released form: entries with `question_id` (or `id`) and `text` (or `prediction`).
        ground_truth (`str` or `Path`, *optional*):
            Entries with the same ids and `answer`, `answers` or `text`; may also hold `question`, `options`,
            `image_size`, `source` (or `dataset_type`) and `ability`. Without it each prediction holds its own
            `answer`.
        ability (`str`, *optional*): the ability of all entries, where they do not name it themselves.
        values (`bool`, defaults to `False`): whether to keep the metric of each item.
        **options: passed to [`compute_score`].

    Returns:
        `dict`: `schema`, `scores`, `files` with their sha256, and `versions`.

    Raises:
        ValueError: for unknown forms, predictions whose id is not in the ground truth, or no ability.

    Example:

    ```python
    >>> from hf_ava_bench import score_files
    >>> from hf_ava_bench.formats import write_json
    >>> write_json("predictions.json", [{"question_id": "1", "text": "It is 5.", "answer": "4"}])
    >>> score_files("predictions.json", ability="counting")["scores"][0]["value"]
    0.25

    ```
    """
    answered = read_entries(predictions)
    truth = answered if ground_truth is None else read_entries(ground_truth)
    unknown = [key for key in answered if key not in truth]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions of {predictions} are not in {ground_truth}, the first is {unknown[0]!r}; "
            "score them against their own questions."
        )
    groups: dict[str, list[str]] = {}
    for key, entry in truth.items():
        groups.setdefault(_ability_of(entry, answered.get(key, {}), ability), []).append(key)
    scores = [
        _score_group(name, keys, answered, truth, ground_truth is None, options).to_dict(values=values)
        | ({"ids": keys} if values else {})
        for name, keys in sorted(groups.items())
    ]
    files = {str(path): hash_file(Path(path)) for path in (predictions, ground_truth) if path is not None}
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"schema": SCHEMA, "scores": scores, "files": files, "versions": versions}


def score_items(table: datasets.Dataset, predictions: Sequence[str | None], **options: Any) -> Score:
    """Returns the score of answers to the items of one ability, row by row.

    Args:
        table (`datasets.Dataset`): items, see [`load_ability`]. Questions, closed sets and sources are taken from it.
        predictions (sequence of `str` or None): what the model wrote to each row.
        **options: passed to [`compute_score`].

    Raises:
        ValueError: if there are no items, or not as many predictions.

    Example:

    ```python
    >>> from hf_ava_bench import load_ability, score_items
    >>> items = load_ability("scene", "mini", "test", n=4, image_size=32)
    >>> score_items(items, list(items["answer"])).value
    1.0

    ```
    """
    if not len(table):
        raise ValueError("Expected at least one item, got none.")
    ability = find_ability(table[0]["ability"])
    closed, sources = list(table["options"]), list(table["source"])
    if ability.answer == "box":
        options = {"coords": "unit", **options}
    return compute_score(
        ability.id,
        predictions,
        list(table["answer"]),
        questions=list(table["question"]),
        options=closed if all(closed) else None,
        sources=sources if any(sources) else None,
        **options,
    )


def _ability_of(entry: Entry, prediction: Entry, ability: str | None) -> str:
    name = ability or entry.get("ability") or prediction.get("ability")
    if name is None:
        raise ValueError("Expected the ability: pass `ability` (--ability), or name it in each entry as `ability`.")
    return find_ability(name).id


def _score_group(
    ability: str,
    keys: list[str],
    answered: Mapping[str, Entry],
    truth: Mapping[str, Entry],
    in_one_file: bool,
    options: Mapping[str, Any],
) -> Score:
    entries = [truth[key] for key in keys]
    # In a file of predictions `text` is what the model wrote; the answer has to come under another name.
    golds = [answers_of({k: v for k, v in e.items() if not in_one_file or k != "text"}) for e in entries]
    extras: dict[str, Any] = {}
    # Released predictions hold the question as their prompt, where the file of answers has none.
    asked = [{**answered.get(key, {}), **e} for key, e in zip(keys, entries, strict=True)]
    if any(e.get("question") or e.get("prompt") for e in asked):
        extras["questions"] = [str(e.get("question") or e.get("prompt") or "") for e in asked]
    sources = [str(e.get("source") or e.get("dataset_type") or "") for e in entries]
    if any(sources):
        extras["sources"] = sources
    if any(e.get("options") for e in entries):
        extras["options"] = [list(e.get("options") or []) for e in entries]
    if all(e.get("image_size") for e in entries):
        extras["image_sizes"] = [e["image_size"] for e in entries]
    texts = [prediction_of(answered[key]) if key in answered else None for key in keys]
    return compute_score(ability, texts, golds, **extras, **options)
