"""Boxes: generalized intersection over union."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_ava_bench.functional import Array, box_iou
from hf_ava_bench.parsers import parse_box
from hf_ava_bench.scorers.base import Flags, Items, Scored, parse_all, parse_references

COORDS = ("auto", "unit", "permille", "pixel")
AREA_BINS = {"0_0.1": 0.1, "0.1_0.2": 0.2, "0.2_0.3": 0.3, "0.3_0.5": 0.5, "0.5_1": np.inf}
"""Name of a bin -> the smallest share of the image that is no longer in it."""


def find_coords(boxes: Array, failed: Flags) -> str:
    """Returns the unit that all boxes of a run are in: shares of one, thousandths, or pixels.

    Decided once for a run, from its largest coordinate, and never for one answer: up to 1.5 shares, up to 1000
    thousandths.
    """
    largest = np.abs(boxes[~failed]).max(initial=0.0)
    return "unit" if largest <= 1.5 else "permille" if largest <= 1000 else "pixel"


def convert_boxes(boxes: Array, coords: str, image_sizes: Sequence[Sequence[int]] | None) -> Array:
    """Returns boxes as shares of width and height.

    Args:
        boxes (array of shape `(n, 4)`): `x1, y1, x2, y2`.
        coords (`str`): `"unit"`, `"permille"` or `"pixel"`.
        image_sizes (sequence of `(width, height)`, *optional*): needed for pixels.
    """
    if coords == "pixel":
        if image_sizes is None:
            raise ValueError(
                "Boxes are in pixels, beyond 1 and 1000: pass `image_sizes`, (width, height) of each "
                "image, or `coords` if they are not."
            )
        return boxes / np.asarray(image_sizes, dtype=np.float64)[:, [0, 1, 0, 1]]
    return boxes / 1000 if coords == "permille" else boxes


def score_boxes(items: Items) -> Scored:
    """Returns GIoU; what is charged for no box is -1, which GIoU never quite reaches."""
    if items.coords not in COORDS:
        raise ValueError(f"`coords` must be one of {', '.join(COORDS)}, got {items.coords!r}.")
    raw, failed, repaired, _ = parse_all(parse_box, items.predictions, 4)
    coords = find_coords(raw, failed) if items.coords == "auto" else items.coords
    boxes = convert_boxes(raw, coords, items.image_sizes)
    truth = parse_references(parse_box, items.first_references(), 4, "a box")
    if truth.max(initial=0) > 1.0 or truth.min(initial=0) < 0:
        truth = convert_boxes(truth, "pixel", items.image_sizes)
    clipped = np.clip(boxes, 0, 1)
    # A thousandth of rounding is no reason to call an answer out of range.
    outside = (np.abs(clipped - boxes) > 1e-3).any(axis=1) & ~failed
    iou, giou = box_iou(clipped, truth)
    iou, giou = np.where(failed, 0.0, iou), np.where(failed, -1.0, giou)
    area = np.abs((truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]))

    def summarize(chosen: Flags) -> dict[str, Any]:
        return {
            "iou": float(iou[chosen].mean()),
            "acc_at_50": float((iou[chosen] >= 0.5).mean()),
            "acc_at_75": float((iou[chosen] >= 0.75).mean()),
        }

    names = list(AREA_BINS)
    index = np.searchsorted(list(AREA_BINS.values()), area, side="right")
    return Scored(
        values=giou,
        failed=failed,
        repaired=repaired,
        out_of_range=outside,
        charged="-1.0",
        groups=[names[int(i)] for i in index],
        summary=summarize,
        facts={"coords": coords},
    )
