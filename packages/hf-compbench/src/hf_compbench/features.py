"""The canonical row of a two-image comparison."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from hf_compbench.sources import RELATIVITIES, SOURCE_NAMES, SOURCES


def build_features() -> datasets.Features:
    """Returns the columns of every set that this package makes or reads.

    `image_1` is Left or First, `image_2` Right or Second; `composite` holds both where they come as one picture. All
    three are empty until images are resolved. `image_1_key` and `image_2_key` say which image it is: its path below
    the folder of images, or a sha256 of its size and pixels for images of our own; a composite has the first only.
    `answer` is an index into `options`, -1 where the label is none of them. `group_id` is equal for pairs that share
    an image, directly or over other pairs. `issues` lists what is odd about the label, `meta` holds the rest as JSON.
    """
    string = datasets.Value("string")
    return datasets.Features(
        {
            "id": string,
            "relativity": datasets.ClassLabel(names=list(RELATIVITIES)),
            "source": datasets.ClassLabel(names=list(SOURCE_NAMES)),
            "subtype": string,
            "image_1": datasets.Image(),
            "image_2": datasets.Image(),
            "composite": datasets.Image(),
            "image_1_key": string,
            "image_2_key": string,
            "question": string,
            "options": datasets.List(string),
            "answer": datasets.Value("int32"),
            "answer_text": string,
            "group_id": string,
            "clip_similarity": datasets.Value("float32"),
            "license": string,
            "issues": datasets.List(string),
            "meta": string,
        }
    )


def build_row(
    *,
    source: str,
    relativity: str,
    keys: tuple[str, str],
    question: str,
    options: Sequence[str],
    answer_text: str,
    subtype: str = "",
    similarity: float | None = None,
    issues: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    group_id: str = "",
) -> dict[str, Any]:
    """Returns a canonical row without images.

    Its `id` is the sha1 of source, both image keys and the question: stable over files, orders of rows and machines.
    Rows that are equal in all of these get ids of their own by [`mark_repeats`].
    """
    answer = list(options).index(answer_text) if answer_text in options else -1
    return {
        "id": hashlib.sha1("|".join([source, *keys, question]).encode()).hexdigest(),
        "relativity": relativity,
        "source": source,
        "subtype": subtype,
        "image_1": None,
        "image_2": None,
        "composite": None,
        "image_1_key": keys[0],
        "image_2_key": keys[1],
        "question": question,
        "options": list(options),
        "answer": answer,
        "answer_text": answer_text,
        "group_id": group_id,
        "clip_similarity": similarity,
        "license": SOURCES[source].terms if source in SOURCES else "apache-2.0",
        "issues": list(issues),
        "meta": json.dumps(dict(meta or {}), sort_keys=True, ensure_ascii=False),
    }


def mark_repeats(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with the issues `duplicate` and `contradiction`, and with ids that no two of them share.

    A row is a duplicate if the same two images were asked the same question before, in either order; its id gets
    `#2`, `#3`, ... where it is the same. Rows that repeat a pair with another winner contradict each other, and all of
    them are marked.

    Args:
        rows: canonical rows of one source, in the order of their file.
    """
    winners: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        winners.setdefault(pair_key(row), set()).add(_winner(row))
    seen: set[tuple[str, ...]] = set()
    count: Counter[str] = Counter()
    marked = []
    for row in rows:
        key, issues = pair_key(row), set(row["issues"])
        issues |= {"duplicate"} if key in seen else set()
        issues |= {"contradiction"} if len(winners[key]) > 1 else set()
        seen.add(key)
        count[row["id"]] += 1
        number = count[row["id"]]
        marked.append({**row, "id": row["id"] if number == 1 else f"{row['id']}#{number}", "issues": sorted(issues)})
    return marked


def pair_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what names a pair of images and the question to it, whatever their order."""
    return (*sorted((row["image_1_key"], row["image_2_key"])), row["question"])


def _winner(row: Mapping[str, Any]) -> str:
    """The key of the image that a label names, or its text where it names none."""
    sides = {"Left": row["image_1_key"], "Right": row["image_2_key"]}
    return str(sides.get(row["answer_text"], row["answer_text"].casefold()))


def build_dataset(rows: Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    """Returns canonical rows as a dataset."""
    features = build_features()
    names = {name: features[name].str2int for name in ("relativity", "source")}
    encoded = [{**row, **{name: encode(row[name]) for name, encode in names.items()}} for row in rows]
    return datasets.Dataset.from_list(encoded, features=features)
