"""The canonical row of a two-image comparison."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from hf_compbench.sources import RELATIVITIES, SOURCE_NAMES, SOURCES


def build_features() -> datasets.Features:
    """Returns the columns of every set that this package makes or reads.

    `image_1` is Left or First, `image_2` Right or Second; `composite` holds both where they come as one picture. All
    three are empty until images are resolved. `image_1_key` and `image_2_key` say which image it is: its path below
    the folder of images, or the sha256 of its bytes for images of our own. `answer` is an index into `options`, -1
    where the label is none of them. `group_id` is equal for pairs that share an image, directly or over other pairs.
    `issues` lists what is odd about the label, `meta` holds the rest as JSON.
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


def build_dataset(rows: Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    """Returns canonical rows as a dataset."""
    features = build_features()
    names = {name: features[name].str2int for name in ("relativity", "source")}
    encoded = [{**row, **{name: encode(row[name]) for name, encode in names.items()}} for row in rows]
    return datasets.Dataset.from_list(encoded, features=features)
