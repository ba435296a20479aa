"""Topic `counting`: 1 to 30 equal things, and a few of another kind that do not count."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import draw_color, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.shapes import SHAPES, unit_area
from hf_diorama.worlds.scenes.surfaces import draw_background

BINS = ((1, 5), (6, 10), (11, 20), (21, 30))
"""Smallest and largest number of each bin; each bin is as likely."""
MAX_OTHERS = 5
INK = (0.05, 0.11)
"""Share of the picture that everything covers together, whatever the number."""


def render_counting(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; the objects of the first one's category come first and are those to count."""
    draws = key.draws("counting")
    low, high = draws.choice(BINS)
    count, others = draws.integer(low, high + 1), draws.integer(0, MAX_OTHERS + 1)
    kinds = draws.sample(SHAPES, 2)
    categories = [kinds[0]] * count + [kinds[1]] * others
    first = draw_color(draws)
    colors = dict(zip(kinds, (first, draw_color(draws, [first])), strict=True))
    ink = draws.uniform(*INK) / len(categories)
    radii = [math.sqrt(ink / unit_area(category)) for category in categories]
    order = draws.sample(range(len(categories)), len(categories))
    found = place_discs(draws, [radii[i] for i in order], gap=0.01)
    discs = dict(zip(order, found, strict=True))
    scene_type, background = draw_background(
        image_size, key.draws("counting background"), list(colors.values()), photos, photo_ratio
    )
    picture = Picture(background)
    for index, category in enumerate(categories):
        paint_glyph(picture, category, colors[category], discs[index], draws.uniform(-20, 20), index + 1)
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [
            annotate(picture, index + 1, category, **color_entry(colors[category]))
            for index, category in enumerate(categories)
        ],
    }
