"""Topic `recognition`: what the marked thing is, among others."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import GLYPHS, draw_color, mark, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.surfaces import draw_background


def render_recognition(
    key: RowKey,
    image_size: int,
    *,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row; the first object is marked, the others are of other categories."""
    draws = key.draws("recognition")
    categories = draws.sample(GLYPHS, draws.integer(3, 6))
    discs = place_discs(draws, [draws.uniform(0.10, 0.22) for _ in categories], gap=0.04)
    colors = [draw_color(draws) for _ in categories]
    scene_type, background = draw_background(
        image_size, key.draws("recognition background"), colors, photos, photo_ratio
    )
    picture = Picture(background)
    for label, (category, color, disc) in enumerate(zip(categories, colors, discs, strict=True), start=1):
        paint_glyph(picture, category, color, disc, draws.uniform(-25, 25), label)
    objects = [
        annotate(picture, label, category, **color_entry(color))
        for label, (category, color) in enumerate(zip(categories, colors, strict=True), start=1)
    ]
    if boxes:
        mark(picture, objects[0]["bbox"])
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": objects,
    }
