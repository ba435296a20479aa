"""Read text: average normalised Levenshtein similarity."""

from typing import Any

import numpy as np

from hf_ava_bench.functional import anls, levenshtein
from hf_ava_bench.scorers.base import Flags, Items, Scored

LENGTH_BINS = {"1_5": 5, "6_10": 10, "11_20": 20, "21_": np.inf}
"""Name of a bin -> the most characters of the first reference in it."""


def normalize_text(text: str) -> str:
    """Returns a text as it is compared: lower case, ends stripped, each run of white space one space."""
    return " ".join(text[:10_000].lower().split())


def score_texts(items: Items) -> Scored:
    """Returns ANLS; any text can be compared, so only a missing answer fails, and is charged 0."""
    golds = [
        [normalize_text(value)] if isinstance(value, str) else [normalize_text(text) for text in value]
        for value in items.references
    ]
    failed = np.array([text is None for text in items.predictions], dtype=bool)
    answers = ["" if text is None else normalize_text(str(text)) for text in items.predictions]
    pairs = list(zip(answers, golds, strict=True))
    values = np.array([anls(answer, gold, inclusive=items.inclusive) for answer, gold in pairs], dtype=np.float64)
    values[failed] = 0.0
    exact = np.array([answer in gold for answer, gold in pairs], dtype=bool) & ~failed
    edits = np.array([min(levenshtein(answer, one) / max(len(one), 1) for one in gold) for answer, gold in pairs])

    def summarize(chosen: Flags) -> dict[str, Any]:
        return {"exact_match": float(exact[chosen].mean()), "cer": float(edits[chosen].mean())}

    names = list(LENGTH_BINS)
    lengths = [len(gold[0]) for gold in golds]
    groups = [names[int(i)] for i in np.searchsorted(list(LENGTH_BINS.values()), lengths)]
    never = np.zeros(len(values), dtype=bool)
    return Scored(
        values=values,
        failed=failed,
        repaired=never,
        out_of_range=never,
        charged="0.0",
        groups=groups,
        summary=summarize,
    )
