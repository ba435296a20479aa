"""Topic `attribute`: one shape whose size, lightness or stripes can be compared with that of another."""

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import RGB, srgb_to_lab
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.shapes import SHAPES, draw_coverage
from hf_diorama.worlds.scenes.surfaces import draw_background, draw_texture

RADIUS = (0.13, 0.38)
"""Range of the radius in images."""
PERIODS = (2, 3, 4, 6, 8, 10)
"""Widths of a stripe in pixels of a picture of 128."""
HUES: tuple[RGB, ...] = ((255, 60, 60), (60, 200, 90), (70, 120, 255), (240, 200, 60), (190, 90, 230), (200, 200, 200))


def render_attribute(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row: a plain or a striped shape, all its attributes independent of each other.

    `levels` holds `size` (radius in images) and, of a plain shape, `lightness` (CIELAB L), of a striped one, `stripes`
    (pairs of stripes across the picture).
    """
    draws = key.draws("attribute")
    shape, is_striped = draws.choice(SHAPES), draws.chance(0.5)
    gain = draws.uniform(0.25, 1.0)
    red, green, blue = (int(channel * gain) for channel in draws.choice(HUES))
    color: RGB = (red, green, blue)
    radius = draws.uniform(*RADIUS)
    x, y = (draws.uniform(radius + 0.02, 0.98 - radius) * image_size for _ in range(2))
    period = max(1, draws.choice(PERIODS) * image_size // 128)
    scene_type, background = draw_background(
        image_size, key.draws("attribute background"), [color], photos, photo_ratio
    )
    picture = Picture(background)
    left, top = (math.floor(center - radius * image_size) for center in (x, y))
    side = math.ceil(2 * radius * image_size) + 2
    coverage = draw_coverage(shape, (x - left, y - top), radius * image_size, draws.uniform(-20, 20), side)
    texture = "striped" if is_striped else "plain"
    picture.paste(draw_texture(texture, side, color, period, draws), coverage, (left, top), label=1)
    levels = [{"name": "size", "value": radius}]
    if is_striped:
        levels.append({"name": "stripes", "value": image_size / (2 * period)})
    else:
        levels.append({"name": "lightness", "value": srgb_to_lab(color)[0]})
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [annotate(picture, 1, shape, texture=texture, **color_entry(color))],
        "levels": levels,
    }
