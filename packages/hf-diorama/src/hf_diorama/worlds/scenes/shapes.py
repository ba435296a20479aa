"""Flat shapes: unit outlines, their area, and their mask on a pixel grid."""

import math
from functools import cache

from PIL import Image, ImageDraw

Point = tuple[float, float]
Outline = tuple[tuple[Point, ...], ...]

SUPERSAMPLING = 3


def _arc(radius: float, start: float = 0.0, stop: float = 2 * math.pi, steps: int = 48, x: float = 0.0) -> list[Point]:
    angles = (start + (stop - start) * step / steps for step in range(steps + 1))
    return [(x + radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _polygon(corners: int, inner: float | None = None) -> list[Point]:
    """Regular polygon with a corner on top; with `inner`, a star whose notches lie at that radius."""
    radii = [1.0] * corners if inner is None else [1.0, inner] * corners
    angles = (2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii)))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _cross(arm: float = 0.34) -> list[Point]:
    reach = math.sqrt(1 - arm * arm)
    corner = [(arm, reach), (arm, arm), (reach, arm)]
    quarter_turns = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
    return [(a * x + b * y, c * x + d * y) for a, b, c, d in quarter_turns for x, y in corner]


def _heart() -> list[Point]:
    """The curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, centred and scaled."""
    points = []
    for step in range(48):
        t = 2 * math.pi * step / 48
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((16 * math.sin(t) ** 3 / 17, -(y + 2.5) / 17))
    return points


def _moon(bite: float = 0.8, offset: float = 0.55) -> list[Point]:
    """A disc without the disc of radius `bite` around (offset, 0)."""
    x = (1 - bite * bite + offset * offset) / (2 * offset)
    outer = math.acos(x)
    inner = math.acos((x - offset) / bite)
    return _arc(1.0, outer, 2 * math.pi - outer) + _arc(bite, 2 * math.pi - inner, inner, x=offset)


# An outline is one filled polygon and the holes in it, inside the unit circle, with y pointing down.
OUTLINES: dict[str, Outline] = {
    "circle": (tuple(_arc(1.0)),),
    "square": (tuple((x * math.sqrt(0.5), y * math.sqrt(0.5)) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))),),
    "triangle": (tuple(_polygon(3)),),
    "star": (tuple(_polygon(5, inner=0.45)),),
    "cross": (tuple(_cross()),),
    "heart": (tuple(_heart()),),
    "ring": (tuple(_arc(1.0)), tuple(_arc(0.55))),
    "moon": (tuple(_moon()),),
}
SHAPES = tuple(OUTLINES)


def _shoelace(polygon: tuple[Point, ...]) -> float:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


@cache
def unit_area(shape: str) -> float:
    """Returns the area of the shape whose bounding circle has radius 1."""
    outer, *holes = OUTLINES[shape]
    return _shoelace(outer) - sum(_shoelace(hole) for hole in holes)


def draw_coverage(shape: str, center: Point, radius: float, degrees: float, side: int) -> Image.Image:
    """Returns how much of each pixel a shape covers, as an 8-bit image of `side` x `side` pixels.

    Corners are rounded to the supersampled pixel grid, so that the last bit of a sine never moves a pixel.

    Args:
        shape (`str`): one of `SHAPES`.
        center (`tuple[float, float]`): centre of the bounding circle in pixels of the returned image.
        radius (`float`): radius of the bounding circle in pixels.
        degrees (`float`): clockwise rotation.
        side (`int`): height and width of the returned image in pixels.
    """
    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    canvas = ImageDraw.Draw(mask)
    cos, sin = math.cos(math.radians(degrees)) * radius, math.sin(math.radians(degrees)) * radius
    for fill, polygon in zip((255, 0), OUTLINES[shape], strict=False):
        corners = [(center[0] + cos * x - sin * y, center[1] + sin * x + cos * y) for x, y in polygon]
        canvas.polygon([(round(x * SUPERSAMPLING), round(y * SUPERSAMPLING)) for x, y in corners], fill=fill)
    return mask.reduce(SUPERSAMPLING)
