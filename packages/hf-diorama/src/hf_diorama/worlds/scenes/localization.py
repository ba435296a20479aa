"""Topic `localization`: one thing to find among things of other kinds, at any size."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import GLYPHS, Disc, draw_color, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.surfaces import draw_background

AREAS = ((0.01, 0.10), (0.10, 0.20), (0.20, 0.30), (0.30, 0.50))
"""Bins of the area of the target's bounding circle's square, as a share of the picture; each as likely."""


def render_localization(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; the first object is the target, the only one of its category."""
    draws = key.draws("localization")
    categories = draws.sample(GLYPHS, draws.integer(2, 6))
    # Target and distractors have the same distribution of sizes, so that the largest need not be the target.
    radii = [math.sqrt(draws.uniform(*draws.choice(AREAS))) / 2 for _ in categories]
    target = place_discs(draws, radii[:1])
    discs: list[Disc] = target
    for radius in radii[1:]:
        discs = [*discs, *place_discs(draws, [radius], fixed=discs)]
    colors = [draw_color(draws) for _ in categories]
    scene_type, background = draw_background(
        image_size, key.draws("localization background"), colors, photos, photo_ratio
    )
    picture = Picture(background)
    for label, (category, color, disc) in enumerate(zip(categories, colors, discs, strict=True), start=1):
        paint_glyph(picture, category, color, disc, draws.uniform(-20, 20), label)
    objects = [
        annotate(picture, label, category, **color_entry(color))
        for label, (category, color) in enumerate(zip(categories, colors, strict=True), start=1)
    ]
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": objects,
    }
