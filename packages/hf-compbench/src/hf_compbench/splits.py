"""The authors' split, and a clean one without shared images, duplicates and sides that give the answer away."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hf_compbench.balance import balance_sides
from hf_compbench.groups import assign_groups, split_groups
from hf_compbench.sources import group_by_column

Row = Mapping[str, Any]
SPLITS = ("official_test", "official_val", "clean_test", "clean_val")
OFFICIAL_SEED = 30
SPOILT = ("answer_not_in_options", "self_pair", "quality_bad", "single_option", "duplicate", "contradiction")
"""Issues that keep a row out of the clean splits."""


def split_official(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the authors' split: by column, in the order of `random.seed(30)`, the first 80 percent are the test set.

    Example:

    ```python
    >>> from hf_compbench.splits import split_official
    >>> rows = [{"source": "celeba", "relativity": "emotion"}] * 1471
    >>> {name: len(part) for name, part in split_official(rows).items()}
    {'official_test': 1176, 'official_val': 295}

    ```
    """
    splits: dict[str, list[Row]] = {"official_test": [], "official_val": []}
    for members in group_by_column(rows).values():
        shuffled = list(members)
        random.Random(OFFICIAL_SEED).shuffle(shuffled)
        cut = int(len(shuffled) * 0.8)
        splits["official_test"] += shuffled[:cut]
        splits["official_val"] += shuffled[cut:]
    return splits


def split_clean(rows: Sequence[Row], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Returns a split in which no image is in both parts, no pair is asked the same question twice, and for each
    question the answer is as often Left as Right in each part (but for one where the number is odd).

    Groups of pairs that share images are made and split within each source, so that the two columns of MIT-States or
    VAW share none either. Rows with an issue of [`SPOILT`] are left out.
    """
    splits: dict[str, list[dict[str, Any]]] = {"clean_test": [], "clean_val": []}
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        if not set(row["issues"]) & set(SPOILT):
            by_source.setdefault(row["source"], []).append(row)
    for members in by_source.values():
        parts = split_groups(assign_groups(members), {"clean_test": 0.8, "clean_val": 0.2}, seed)
        for name, part in parts.items():
            splits[name] += balance_sides(part, seed)
    return splits
