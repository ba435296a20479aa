"""Single things on a background: shapes and things with a front under one name space, and where they stand."""

import math
from collections.abc import Sequence

from hf_diorama.draws import Draws
from hf_diorama.worlds.scenes.fronts import build_front
from hf_diorama.worlds.scenes.palette import RGB, distance, shade_of
from hf_diorama.worlds.scenes.picture import Picture
from hf_diorama.worlds.scenes.shapes import OUTLINES, SHAPES, Point, draw_coverage

GLYPHS = (*SHAPES, "arrow", "fish", "car", "bottle")
"""Twelve coarse classes."""

Disc = tuple[float, float, float]
"""Column, row and radius of a bounding circle, in images."""


def paint_glyph(picture: Picture, category: str, color: RGB, disc: Disc, degrees: float = 0.0, label: int = 0) -> None:
    """Paints a glyph inside its bounding circle."""
    x, y, radius = (value * picture.size for value in disc)
    if category not in OUTLINES:
        picture.paint(build_front(category, color, shade_of(color)), (x, y), radius, degrees, label)
        return
    left, top = math.floor(x - radius), math.floor(y - radius)
    side = math.ceil(2 * radius) + 2
    coverage = draw_coverage(category, (x - left, y - top), radius, degrees, side)
    picture.paste(color, coverage, (left, top), label)


def draw_color(draws: Draws, avoid: Sequence[RGB] = (), apart: int = 120) -> RGB:
    """Returns a random colour at least `apart` from those to avoid, or the farthest of a few if there is none."""
    tried: list[RGB] = []
    for _ in range(12):
        color = (draws.integer(0, 256), draws.integer(0, 256), draws.integer(0, 256))
        if all(distance(color, other) >= apart for other in avoid):
            return color
        tried.append(color)
    return max(tried, key=lambda rgb: min(distance(rgb, other) for other in avoid))


def place_discs(draws: Draws, radii: Sequence[float], gap: float = 0.02, fixed: Sequence[Disc] = ()) -> list[Disc]:
    """Returns bounding circles inside the picture, `gap` apart from each other and from those that are fixed.

    Those for which no room is found are all made smaller.
    """
    scale = 1.0
    while True:
        placed: list[Disc] = []
        for radius in radii:
            center = _find_room(draws, radius * scale, gap, [*fixed, *placed])
            if center is None:
                break
            placed.append((*center, radius * scale))
        if len(placed) == len(radii):
            return placed
        scale *= 0.95


def _find_room(draws: Draws, radius: float, gap: float, others: Sequence[Disc]) -> Point | None:
    for _ in range(40):
        x = radius + gap + draws.unit() * (1 - 2 * (radius + gap))
        y = radius + gap + draws.unit() * (1 - 2 * (radius + gap))
        if all((x - ox) ** 2 + (y - oy) ** 2 >= (radius + other + gap) ** 2 for ox, oy, other in others):
            return x, y
    return None


RED: RGB = (255, 0, 0)
BLUE: RGB = (0, 0, 255)
"""Colours of the box around the first and around the second thing that is asked about."""


def mark(picture: Picture, *boxes: Sequence[int]) -> None:
    """Draws a red box around the first extent and a blue one around the second, one pixel away from what they hold."""
    width = max(2, picture.size // 48)
    for box, color in zip(boxes, (RED, BLUE), strict=False):
        picture.frame(box, color, width)
