"""Topic `orientation`: which way a thing with a front faces."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.fronts import DIRECTIONS, FRONTS, build_front
from hf_diorama.worlds.scenes.glyphs import draw_color, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.shapes import SHAPES
from hf_diorama.worlds.scenes.surfaces import draw_background

JITTER = 8.0
"""Largest deviation from the named direction in degrees; neighbours are 45 degrees apart."""


def render_orientation(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; the first object has a front, its `azimuth` lies near the direction in `states[0]`."""
    draws = key.draws("orientation")
    facing = draws.integer(0, len(DIRECTIONS))
    azimuth = (45 * facing + draws.uniform(-JITTER, JITTER)) % 360
    kind = draws.choice(FRONTS)
    target = place_discs(draws, [draws.uniform(0.24, 0.40)])
    others = draws.sample([shape for shape in SHAPES if shape in ("circle", "square", "ring", "cross")], 2)
    others = others[: draws.integer(0, 3)]
    discs = place_discs(draws, [draws.uniform(0.04, 0.08) for _ in others], fixed=target)
    color = draw_color(draws)
    accent = draw_color(draws, [color])
    colors = [draw_color(draws) for _ in others]
    scene_type, background = draw_background(
        image_size, key.draws("orientation background"), [color], photos, photo_ratio
    )
    picture = Picture(background)
    x, y, radius = (value * image_size for value in target[0])
    picture.paint(build_front(kind, color, accent), (x, y), radius, azimuth, label=1)
    for label, (category, shade, disc) in enumerate(zip(others, colors, discs, strict=True), start=2):
        paint_glyph(picture, category, shade, disc, label=label)
    objects = [annotate(picture, 1, kind, azimuth=azimuth, **color_entry(color))]
    objects += [
        annotate(picture, label, category, **color_entry(shade))
        for label, (category, shade) in enumerate(zip(others, colors, strict=True), start=2)
    ]
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": objects,
        "states": [DIRECTIONS[facing]],
    }
