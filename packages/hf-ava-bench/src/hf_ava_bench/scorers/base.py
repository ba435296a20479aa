"""What all scorers share: the items they are given, and what they give back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_ava_bench.abilities import Ability
from hf_ava_bench.functional import Array
from hf_ava_bench.parsers import Parsed

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Items:
    """Predictions and all that is needed to judge them, item by item."""

    ability: Ability
    predictions: Sequence[str | None]
    references: Sequence[str | Sequence[str]]
    questions: Sequence[str] | None = None
    options: Sequence[Sequence[str]] | None = None
    image_sizes: Sequence[Sequence[int]] | None = None
    coords: str = "auto"
    inclusive: bool = False
    sources: Sequence[str] | None = None
    prefer: str = "text"
    clip_rel: float | None = None

    def first_references(self) -> list[str]:
        """Returns one reference for each item, the first where there are several."""
        return [value if isinstance(value, str) else value[0] for value in self.references]


@dataclass(kw_only=True)
class Scored:
    """What a scorer found, with one entry for each reference.

    `values` is the metric of each item; where nothing could be read it is what is charged for that. `summary` makes
    further figures from a choice of items, `groups` names the bin of each. Figures are made for each bin too, unless
    bins are classes.
    """

    values: Array
    failed: Flags
    repaired: Flags
    out_of_range: Flags
    charged: str
    groups: Sequence[str] = ()
    summary: Callable[[Flags], dict[str, Any]] = field(default=lambda chosen: {})
    facts: Mapping[str, Any] = field(default_factory=dict)


def parse_all(
    parse: Callable[[Any], Parsed], texts: Sequence[str | None], width: int
) -> tuple[Array, Flags, Flags, Flags]:
    """Returns values `(n, width)`, zero where there are none, and what failed, was repaired, was out of range."""
    parsed = [parse(text) for text in texts]
    values = np.array([item.value or (0.0,) * width for item in parsed], dtype=np.float64).reshape(len(parsed), width)
    failed = np.array([item.value is None for item in parsed], dtype=bool)
    repaired = np.array([item.repaired for item in parsed], dtype=bool)
    return values, failed, repaired, np.array([item.out_of_range for item in parsed], dtype=bool)


def parse_references(parse: Callable[[Any], Parsed], texts: Sequence[str], width: int, kind: str) -> Array:
    """Returns the values of references, all of which have to be readable."""
    values, failed, _, _ = parse_all(parse, texts, width)
    if failed.any():
        index = int(np.flatnonzero(failed)[0])
        raise ValueError(f"Expected {kind} in every reference, got {texts[index]!r} at position {index}.")
    return values
