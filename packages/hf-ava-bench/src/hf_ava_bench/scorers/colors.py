"""Colours: the difference CIEDE2000."""

from itertools import product
from typing import Any

import numpy as np

from hf_ava_bench.functional import ciede2000, srgb_to_lab
from hf_ava_bench.parsers import parse_rgb
from hf_ava_bench.scorers.base import Flags, Items, Scored, parse_all, parse_references

CORNERS = srgb_to_lab(np.array(list(product((0, 255), repeat=3)), dtype=np.float64))  # (8, 3)


def score_colors(items: Items) -> Scored:
    """Returns CIEDE2000; what is charged for no colour is the difference to the farthest corner of the sRGB cube."""
    rgb, failed, repaired, outside = parse_all(parse_rgb, items.predictions, 3)
    truth = srgb_to_lab(parse_references(parse_rgb, items.first_references(), 3, "a colour"))
    difference = ciede2000(srgb_to_lab(rgb), truth)
    if failed.any():
        worst = ciede2000(CORNERS[None], truth[failed][:, None]).max(axis=1)
        difference[failed] = worst

    def summarize(chosen: Flags) -> dict[str, Any]:
        values = difference[chosen]
        below = {f"share_below_{limit:g}": float((values < limit).mean()) for limit in (2.3, 5, 10)}
        return {"median_ciede2000": float(np.median(values)), **below}

    return Scored(
        values=difference,
        failed=failed,
        repaired=repaired,
        out_of_range=outside,
        charged="the difference to the farthest corner of the sRGB cube",
        summary=summarize,
    )
