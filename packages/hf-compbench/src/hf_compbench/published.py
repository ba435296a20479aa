"""What the labels and predictions of the authors' review-time release give, to hold a user's copy against.

Both tables were computed from the files of the repository CompBenchReview, commit 54559d3. The labels of April 2025
may differ from them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_compbench.scoring import read_rows
from hf_compbench.sources import group_by_column

COUNTS: dict[str, tuple[int, int]] = {
    "ST-a": (183, 146),
    "FA": (2435, 1948),
    "VA-a": (893, 714),
    "CU": (870, 696),
    "WF": (946, 756),
    "MB": (927, 741),
    "SD": (1270, 1016),
    "ST-s": (597, 477),
    "VA-s": (470, 376),
    "CE": (1471, 1176),
    "FE": (3783, 3026),
    "SN": (8316, 6652),
    "CC": (5000, 4000),
    "ND": (1858, 1486),
    "VQ": (9766, 7812),
    "QB": (1000, 800),
}
"""By column the pairs in all, and those of the official test split."""

_MODELS: dict[str, tuple[float | None, ...]] = {
    "gpt": (91.8, 89.0, 76.9, 71.4, 72.1, 58.4, 41.9, 92.2, 87.8, 91.8, 83.4, 71.4, 73.7, 56.1, 63.8, 73.1),
    "llava": (84.9, 72.1, 77.7, 72.6, 68.7, 26.5, 20.7, 89.7, 79.3, 96.2, 83.5, 51.0, 50.2, 67.2, 50.1, 64.8),
    "gemini": (71.9, 76.3, 69.3, 59.9, 54.9, 53.7, 53.0, 81.8, 70.7, 60.6, 71.2, None, 58.2, 56.5, 54.6, 59.5),
    "vila": (69.9, 66.2, 70.9, 55.9, 52.0, 49.5, 36.8, 71.9, 74.5, 57.1, 55.6, 51.0, 52.9, 51.8, 47.7, 64.8),
}
ACCURACIES: dict[str, dict[str, float]] = {
    model: {code: value for code, value in zip(COUNTS, values, strict=True) if value is not None}
    for model, values in _MODELS.items()
}
"""By the models of the prediction files (GPT-4V, LLaVA-1.6-34B, Gemini 1.0 Pro, VILA-1.5-40B) and column the accuracy
in percent on the official test split, in one image order and as the authors' scripts read replies."""


def compare_counts(test: Iterable[Mapping[str, Any]], val: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each column of the official splits how many pairs there are, and how many were published.

    Example:

    ```python
    >>> from hf_compbench.published import compare_counts
    >>> row = {"id": "a", "relativity": "emotion", "source": "celeba", "question": "Which person smiles more?",
    ...        "options": ["Left", "Right"], "answer": 0, "group_id": "g"}
    >>> compare_counts([row] * 1176, [row] * 294)
    [{'column': 'CE', 'test': 1176, 'val': 294, 'published_test': 1176, 'published_val': 295}]

    ```
    """
    parts = [{code: len(rows) for code, rows in group_by_column(read_rows(part)).items()} for part in (test, val)]
    compared = []
    for code, (total, in_test) in COUNTS.items():
        if any(code in part for part in parts):
            here = {"test": parts[0].get(code, 0), "val": parts[1].get(code, 0)}
            compared.append({"column": code, **here, "published_test": in_test, "published_val": total - in_test})
    return compared
