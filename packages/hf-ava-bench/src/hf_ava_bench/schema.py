"""The table that every source of items is brought into."""

from typing import Any

import datasets

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "ability": datasets.Value("string"),
        "source": datasets.Value("string"),
        "options": datasets.List(datasets.Value("string")),
        "answer_struct": {
            "number": datasets.Value("float64"),
            "box": datasets.List(datasets.Value("float32")),
            "rgb": datasets.List(datasets.Value("uint8")),
            "text": datasets.Value("string"),
        },
        "meta": datasets.Value("string"),
    }
)
"""Columns of an item. `answer_struct` holds the answer in the one form that the ability has; the others are None.
`options` is empty where answers are free. `meta` is JSON."""


def build_struct(kind: str, answer: Any) -> dict[str, Any]:
    """Returns the `answer_struct` of a typed answer: a number, four coordinates, three channels, or a string."""
    struct: dict[str, Any] = dict.fromkeys(("number", "box", "rgb", "text"))
    struct["text" if kind == "class" else kind] = answer
    return struct
