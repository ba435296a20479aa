"""Topic `spatial`: where one thing is relative to another, both marked by a box."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import GLYPHS, Disc, draw_color, mark, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.surfaces import draw_background

RELATIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "left above": (-1, -1),
    "right above": (1, -1),
    "left below": (-1, 1),
    "right below": (1, 1),
}
"""Name of a relation -> the signs of the first thing's column and row minus the second's."""
ALIGNED, APART = 0.04, 0.15
"""Centres closer than the first on an axis, in images, are level; otherwise they are the second apart at least."""


def render_spatial(
    key: RowKey,
    image_size: int,
    *,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row; the first object (red box) stands in the relation `states[0]` to the second (blue box)."""
    draws = key.draws("spatial")
    relation = draws.choice(tuple(RELATIONS))
    pair = _draw_pair(draws, *RELATIONS[relation])
    categories = draws.sample(GLYPHS, draws.integer(2, 5))
    others = place_discs(draws, [draws.uniform(0.05, 0.10) for _ in categories[2:]], gap=0.06, fixed=pair)
    discs = [*pair, *others]
    colors = [draw_color(draws) for _ in categories]
    scene_type, background = draw_background(image_size, key.draws("spatial background"), colors, photos, photo_ratio)
    picture = Picture(background)
    for label, (category, color, disc) in enumerate(zip(categories, colors, discs, strict=True), start=1):
        paint_glyph(picture, category, color, disc, draws.uniform(-20, 20), label)
    objects = [
        annotate(picture, label, category, position=[disc[0], disc[1]], **color_entry(color))
        for label, (category, color, disc) in enumerate(zip(categories, colors, discs, strict=True), start=1)
    ]
    if boxes:
        mark(picture, objects[0]["bbox"], objects[1]["bbox"])
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": objects,
        "states": [relation],
    }


def _draw_pair(draws: Draws, dx: int, dy: int) -> list[Disc]:
    """Returns two bounding circles in the relation, with room for their boxes."""
    while True:
        radii = draws.uniform(0.07, 0.15), draws.uniform(0.07, 0.15)
        offset = [sign * draws.uniform(APART, 0.6) if sign else draws.uniform(-ALIGNED, ALIGNED) for sign in (dx, dy)]
        second = [draws.uniform(radii[1] + 0.05, 0.95 - radii[1]) for _ in range(2)]
        first = [value + shift for value, shift in zip(second, offset, strict=True)]
        inside = all(radii[0] + 0.05 <= value <= 0.95 - radii[0] for value in first)
        if inside and max(abs(offset[0]), abs(offset[1])) >= sum(radii) + 0.12:  # room for both boxes
            return [(first[0], first[1], radii[0]), (second[0], second[1], radii[1])]
