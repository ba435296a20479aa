"""Topic `action`: what the figure does."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.figures import ACTIONS, build_figure, draw_looks, draw_pose
from hf_diorama.worlds.scenes.glyphs import draw_color, paint_glyph, place_discs
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.shapes import SHAPES
from hf_diorama.worlds.scenes.surfaces import draw_background

REACH = 1.05
"""Half of the largest extent of a figure, in its own units."""


def render_action(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; `figures[0]` acts, the objects are things around that have nothing to do with it."""
    draws = key.draws("action")
    action = draws.choice(tuple(ACTIONS))
    looks = draw_looks(draws)
    layers = build_figure(draw_pose(draws, action), looks)
    target = place_discs(draws, [draws.uniform(0.32, 0.44)], gap=0.01)
    categories = draws.sample(SHAPES, draws.integer(0, 4))
    discs = place_discs(draws, [draws.uniform(0.03, 0.07) for _ in categories], fixed=target)
    colors = [draw_color(draws) for _ in categories]
    scene_type, background = draw_background(
        image_size, key.draws("action background"), [looks.shirt, looks.trousers], photos, photo_ratio
    )
    picture = Picture(background)
    for label, (category, color, disc) in enumerate(zip(categories, colors, discs, strict=True), start=2):
        paint_glyph(picture, category, color, disc, label=label)
    x, y, radius = (value * image_size for value in target[0])
    # All figures have the same scale and limbs, so that neither ink nor size tells what they do.
    picture.paint(layers, (x, y), radius / REACH, draws.uniform(-8, 8), label=1)
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "figures": [{"action": action, "bbox": picture.bbox(1)}],
        "objects": [
            annotate(picture, label, category, **color_entry(color))
            for label, (category, color) in enumerate(zip(categories, colors, strict=True), start=2)
        ],
    }
