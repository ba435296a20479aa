"""Topic `state`: a glass, a candle, a fruit or a door, and how full, burnt, bruised or open it is."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import COLORS, RGB, draw_shade
from hf_diorama.worlds.scenes.picture import Layer, Picture, annotate, color_entry, ellipse, rectangle
from hf_diorama.worlds.scenes.surfaces import draw_background

DARK: RGB = (40, 36, 34)
PALE: RGB = (225, 232, 238)


def _glass(level: float, color: RGB, draws: Draws) -> list[Layer]:
    """A straight glass between y = -0.9 and 0.9, full up to `level`."""
    del draws
    half, surface = 0.45, 0.82 - 1.64 * level
    layers: list[Layer] = [(DARK, [rectangle(-half - 0.06, -0.9, half + 0.06, 0.9)])]
    layers.append((PALE, [rectangle(-half, -0.92, half, 0.82)]))
    layers.append((color, [rectangle(-half, surface, half, 0.82)]))
    return layers


def build_candle(level: float, color: RGB, draws: Draws | None = None) -> list[Layer]:
    """Returns a candle in a stand as high as the whole candle was, of which the share `level` is burnt."""
    del draws
    top = 0.75 - 1.35 * (1 - level)
    layers: list[Layer] = [(DARK, [rectangle(-0.55, 0.75, 0.55, 0.92), rectangle(0.42, -0.6, 0.52, 0.8)])]
    layers.append((color, [rectangle(-0.2, top, 0.2, 0.75)]))
    layers.append((DARK, [rectangle(-0.025, top - 0.1, 0.025, top)]))
    layers.append(((250, 190, 40), [ellipse(0, top - 0.2, 0.09, 0.15)]))
    return layers


def _fruit(level: float, color: RGB, draws: Draws) -> list[Layer]:
    """A fruit of radius 0.85 with one brown spot that covers the share `level` of it."""
    radius = 0.85 * math.sqrt(level)
    angle, reach = draws.uniform(0, 2 * math.pi), draws.uniform(0, 0.85 - radius)
    x, y = reach * math.cos(angle), reach * math.sin(angle)
    layers: list[Layer] = [(DARK, [rectangle(-0.04, -0.98, 0.04, -0.75)]), (color, [ellipse(0, 0.05, 0.85, 0.85, 40)])]
    layers.append(((82, 52, 28), [ellipse(x, y + 0.05, radius, radius, 32)]))
    return layers


def _door(level: float, color: RGB, draws: Draws) -> list[Layer]:
    """A door hinged on the left, open by `level` times 80 degrees into the room behind."""
    del draws
    angle = math.radians(80 * level)
    width, depth = 1.0 * math.cos(angle), 0.28 * math.sin(angle)
    leaf = [(-0.5, -0.85), (-0.5 + width, -0.85 + depth), (-0.5 + width, 0.85 - depth), (-0.5, 0.85)]
    knob = ellipse(-0.5 + 0.85 * width, 0.05, 0.05, 0.05, 12)
    return [
        (PALE, [rectangle(-0.58, -0.93, 0.58, 0.9)]),
        (DARK, [rectangle(-0.5, -0.85, 0.5, 0.85)]),
        (color, [leaf]),
        ((245, 220, 90), [knob]),
    ]


Build = Callable[[float, RGB, Draws], list[Layer]]
STATES: dict[str, tuple[str, tuple[float, float], Build]] = {
    "glass": ("fullness", (0.04, 0.96), _glass),
    "candle": ("burntness", (0.04, 0.92), build_candle),
    "fruit": ("bruise", (0.02, 0.45), _fruit),
    "door": ("openness", (0.0, 1.0), _door),
}
"""Category -> name of its level, range of the level, and how it is built."""
_NEUTRAL = ("brown", "gray", "black")  # a bruise or a doorway would not show on these


def render_state(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; `levels` holds the state of its single object, a share in [0, 1]."""
    draws = key.draws("state")
    category = draws.choice(tuple(STATES))
    name, bounds, build = STATES[category]
    level = draws.uniform(*bounds)
    color = draw_shade(draws, draws.choice([color for color in COLORS if color not in _NEUTRAL]))
    radius = draws.uniform(0.25, 0.42)
    x, y = (draws.uniform(radius, 1 - radius) * image_size for _ in range(2))
    scene_type, background = draw_background(image_size, key.draws("state background"), [color], photos, photo_ratio)
    picture = Picture(background)
    picture.paint(build(level, color, draws), (x, y), radius * image_size, label=1)
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [annotate(picture, 1, category, **color_entry(color))],
        "levels": [{"name": name, "value": level}],
    }
