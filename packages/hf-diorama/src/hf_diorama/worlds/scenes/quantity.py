"""Topic `quantity`: three to twelve equal shapes that cover the same area together, whatever their number."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import draw_color, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.shapes import SHAPES, unit_area
from hf_diorama.worlds.scenes.surfaces import draw_background

COUNT = (3, 12)
INK = (0.07, 0.13)
"""Share of the picture that all shapes cover together."""


def render_quantity(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; `objects` holds the shapes, all of one category and colour, `levels` their `count`."""
    draws = key.draws("quantity")
    count = draws.integer(COUNT[0], COUNT[1] + 1)
    category, color = draws.choice(SHAPES), draw_color(draws)
    weights = [draws.uniform(0.7, 1.3) for _ in range(count)]
    ink = draws.uniform(*INK) / sum(weights)
    radii = [math.sqrt(ink * weight / unit_area(category)) for weight in weights]
    discs = place_discs(draws, radii, gap=0.005)
    scene_type, background = draw_background(
        image_size, key.draws("quantity background"), [color], photos, photo_ratio
    )
    picture = Picture(background)
    for label, disc in enumerate(discs, start=1):
        paint_glyph(picture, category, color, disc, draws.uniform(-20, 20), label)
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [annotate(picture, label, category, **color_entry(color)) for label in range(1, count + 1)],
        "levels": [{"name": "count", "value": float(count)}],
    }
