"""Pairs that share an image belong together: in a split, and as one cluster of an interval."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


def connect(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Returns for each pair the name of its connected component: the smallest key in it.

    Args:
        pairs: the keys of the two images; an empty second key is no image.

    Example:

    ```python
    >>> from hf_compbench.groups import connect
    >>> connect([("a", "b"), ("c", "b"), ("x", "y")])
    ['a', 'a', 'x']

    ```
    """
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        root = parent.setdefault(key, key)
        while parent[root] != root:
            root = parent[root]
        while parent[key] != root:
            parent[key], key = root, parent[key]
        return root

    for first, second in pairs:
        a, b = find(first), find(second or first)
        parent[max(a, b)] = min(a, b)
    return [find(first) for first, _ in pairs]


def hash_unit(*parts: object) -> float:
    """Returns a number in [0, 1) that depends on nothing but the parts: the same on any machine, in any order."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def assign_groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with `group_id` set from the images they share, within each source."""
    pairs = [(f"{row['source']}/{row['image_1_key']}", _second(row)) for row in rows]
    roots = connect(pairs)
    names = [hashlib.sha1(root.encode()).hexdigest()[:16] for root in roots]
    return [{**row, "group_id": name} for row, name in zip(rows, names, strict=True)]


def _second(row: Mapping[str, Any]) -> str:
    return f"{row['source']}/{row['image_2_key']}" if row["image_2_key"] else ""


def split_groups(rows: Sequence[Mapping[str, Any]], fractions: Mapping[str, float], seed: int) -> dict[str, list[Any]]:
    """Returns the rows by split, no group in two of them.

    Large groups come first, those of the same size in an order drawn from the seed; each goes to the split that is
    farthest below its share of rows.
    """
    members: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        members.setdefault(row["group_id"], []).append(row)
    splits: dict[str, list[Any]] = {name: [] for name in fractions}
    for group in sorted(members, key=lambda group: (-len(members[group]), hash_unit(seed, "split", group))):
        short = {name: share * len(rows) - len(splits[name]) for name, share in fractions.items()}
        splits[max(short, key=lambda name: short[name])] += members[group]
    return splits
