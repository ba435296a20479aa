"""What makes two images a comparison: a blocking key, and a question with its answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question about two images, the first as Left.

    Args:
        question: its text.
        options: texts of the options.
        answer_text: the right one.
        subtype: what is compared, e.g. `"size"`.
        margin: how clear the answer is, in units of the rule; kept in `meta`.
    """

    question: str
    options: tuple[str, ...]
    answer_text: str
    subtype: str = ""
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """Which images of a pool may be compared, and how.

    Args:
        source, relativity: of the rows that are made.
        block: metadata of an image -> key of its block, or None to leave it out; only images of a block are paired.
        compare: metadata of two images -> a [`Comparison`], or None if this pair gives none.
        low, high: band of cosine similarity; near duplicates above `high` are left out.
        neighbours: how many nearest images of its block each image is compared with.
        shares: wanted share of an answer among all, e.g. `{"Same": 1 / 3}`; other answers are not limited.

    Example:

    ```python
    >>> from hf_compbench.mining import Comparison, PairRule
    >>> def compare(a, b):
    ...     if abs(a["year"] - b["year"]) < 3:
    ...         return None
    ...     newer = "Left" if a["year"] > b["year"] else "Right"
    ...     return Comparison(question="Which car is newer?", options=("Left", "Right"), answer_text=newer)
    >>> rule = PairRule(source="comp_cars", relativity="temporality", block=lambda row: row["model"], compare=compare)
    >>> rule.compare({"year": 2014}, {"year": 2009}).answer_text
    'Left'

    ```
    """

    source: str
    relativity: str
    block: Callable[[Row], str | None]
    compare: Callable[[Row, Row], Comparison | None]
    low: float = -1.0
    high: float = 0.9999
    neighbours: int = 32
    shares: Mapping[str, float] = field(default_factory=dict)
