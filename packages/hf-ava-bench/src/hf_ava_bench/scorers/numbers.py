"""Counts and depths: the error relative to the truth."""

from functools import partial
from typing import Any

import numpy as np

from hf_ava_bench.functional import relative_error
from hf_ava_bench.parsers import parse_number
from hf_ava_bench.scorers.base import Flags, Items, Scored, parse_all, parse_references

BINS = {"0_5": 5.0, "5_10": 10.0, "10_20": 20.0, "20_": np.inf}
"""Name of a bin -> the largest truth in it."""


def score_numbers(items: Items) -> Scored:
    """Returns relative errors; what is charged for no number is that of the answer 0."""
    depth = items.ability.id == "abs_depth"
    parse = partial(parse_number, meters=depth)
    p, failed, repaired, outside = parse_all(parse, items.predictions, 1)
    g = parse_references(parse, items.first_references(), 1, "a number")[:, 0]
    p = p[:, 0]
    if depth and (g <= 0).any():
        index = int(np.flatnonzero(g <= 0)[0])
        raise ValueError(f"Depths must be positive, got the reference {g[index]} at position {index}.")
    relative = np.where(failed, 1.0, relative_error(p, g))
    if items.clip_rel is not None:
        relative = np.minimum(relative, items.clip_rel)
    error = np.abs(p - g)
    # Half a unit for counts; depths are never exact.
    exact = (error < 0.5) & ~failed

    def summarize(chosen: Flags) -> dict[str, Any]:
        e, truth = error[chosen], g[chosen]
        figures = {
            "mae": float(e.mean()),
            "rmse": float(np.sqrt((e**2).mean())),
            "rmse_gt": float(np.sqrt((e**2 / np.where(truth == 0, 1, truth)).mean())),
            "median_relative_error": float(np.median(relative[chosen])),
        }
        if depth:
            ratio = np.maximum(p[chosen], truth) / np.maximum(np.minimum(p[chosen], truth), 1e-9)
            return {**figures, "delta1": float((ratio < 1.25).mean())}
        return {**figures, "exact_accuracy": float(exact[chosen].mean()), "n_zero_gt": int((truth == 0).sum())}

    bounds = list(BINS.values())
    groups = [list(BINS)[int(index)] for index in np.searchsorted(bounds, g)]
    return Scored(
        values=relative,
        failed=failed,
        repaired=repaired,
        out_of_range=outside,
        charged="1.0, the relative error of the answer 0",
        groups=groups,
        summary=summarize,
    )
