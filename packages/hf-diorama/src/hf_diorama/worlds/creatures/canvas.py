"""A canvas that draws shapes in colour and in labels at once, with vertices on a fixed sub-pixel grid."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]


class Canvas:
    """An oversampled picture whose fourth band holds the label of the part painted last.

    The picture has mode CMYK because that is Pillow's four-band mode in which no band means transparency: a polygon
    sets colour and label in one call, and reduction treats the bands alike. Vertices are rounded to sub-samples, so
    that the picture does not depend on the last bit of a sine.

    Args:
        size (`int`): height and width of the finished picture in pixels.
    """

    def __init__(self, size: int):
        self.size = size
        self.samples = 4 if size <= 96 else 3 if size <= 192 else 2
        self.width = size * self.samples
        self.image = Image.new("CMYK", (self.width, self.width))
        self._draw = ImageDraw.Draw(self.image)
        self._clips: list[tuple[Image.Image, Image.Image]] = []

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Paints a background rectangle; coordinates are fractions of the picture."""
        w = self.width
        box = (round(left * w), round(top * w), round(right * w) - 1, round(bottom * w) - 1)
        if box[0] <= box[2] and box[1] <= box[3]:
            self._draw.rectangle(box, fill=(*color, 0))

    def polygon(self, points: list[tuple[int, int]], color: Color, label: int) -> None:
        """Paints a polygon with vertices in sub-samples."""
        self._draw.polygon(points, fill=(*color, label))

    def clip(self, polygons: list[list[tuple[int, int]]]) -> None:
        """Confines what is painted until `unclip` to the union of the polygons."""
        mask = Image.new("L", self.image.size)
        draw = ImageDraw.Draw(mask)
        for points in polygons:
            draw.polygon(points, fill=255)
        self._clips.append((self.image.copy(), mask))

    def unclip(self) -> None:
        """Ends the innermost `clip`."""
        below, mask = self._clips.pop()
        box = mask.getbbox()
        if box is not None:
            below.paste(self.image.crop(box), box[:2], mask.crop(box))
        self.image = below
        self._draw = ImageDraw.Draw(below)

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Returns the picture `(size, size, 3)` and the label map `(size, size)`.

        A pixel has the highest label among its sub-samples, so that a label covers every pixel its part contributes
        to, but for those that a part with a higher label shares.
        """
        picture = np.asarray(self.image.reduce(self.samples))[:, :, :3]
        labels = np.asarray(self.image.getchannel(3))
        for _ in range(2):
            rows = [labels[start :: self.samples] for start in range(self.samples)]
            top = rows[0]
            for row in rows[1:]:
                top = np.maximum(top, row)
            labels = top.T
        return picture, np.ascontiguousarray(labels)


class Frame:
    """A rotated, scaled, shifted and maybe mirrored coordinate system on a canvas.

    Args:
        x, y (`float`): origin in sub-samples.
        scale (`float`): sub-samples in one unit.
        angle (`float`): turn in degrees, clockwise on the picture (y points down).
        flip (`bool`): mirrors left and right before the turn.
    """

    def __init__(self, x: float, y: float, scale: float, angle: float = 0.0, flip: bool = False):
        turn = math.radians(angle)
        self.cos, self.sin = math.cos(turn) * scale, math.sin(turn) * scale
        self.x, self.y, self.scale = x, y, scale
        self.mirror = -1.0 if flip else 1.0

    def at(self, x: float, y: float, scale: float = 1.0, angle: float = 0.0) -> "Frame":
        """Returns a frame placed inside this one."""
        child = Frame(0, 0, self.scale * scale, 0.0)
        turn = math.radians(angle)
        cos, sin = math.cos(turn), math.sin(turn)
        child.x, child.y = self.map(x, y)
        # (mirror * x, y) is turned by this frame after the child's own turn; a mirror reverses that turn.
        child.mirror = self.mirror
        child.cos = (self.cos * cos - self.sin * sin * self.mirror) * scale
        child.sin = (self.sin * cos + self.cos * sin * self.mirror) * scale
        return child

    def map(self, x: float, y: float) -> Point:
        """Returns where a point of this frame lies on the canvas."""
        x *= self.mirror
        return self.x + self.cos * x - self.sin * y, self.y + self.sin * x + self.cos * y

    def trace(self, shape: "Shape", grow: float = 0.0) -> list[tuple[int, int]]:
        """Returns the vertices of a shape, moved outwards by `grow` sub-samples."""
        a, b = self.cos * self.mirror, self.sin * self.mirror
        c, d, tx, ty = self.sin, self.cos, self.x + 0.5, self.y + 0.5
        floor = math.floor
        if not grow:
            return [(floor(tx + a * x - c * y), floor(ty + b * x + d * y)) for x, y, _, _ in shape]
        g = grow / self.scale
        return [
            (floor(tx + a * (x + g * u) - c * (y + g * v)), floor(ty + b * (x + g * u) + d * (y + g * v)))
            for x, y, u, v in shape
        ]


Shape = tuple[tuple[float, float, float, float], ...]
"""Vertices of a closed outline, each with its outward normal: `(x, y, normal_x, normal_y)`."""


@lru_cache(maxsize=4096)
def ellipse(rx: float, ry: float, vertices: int = 28) -> Shape:
    """Returns an ellipse around the origin."""
    turns = [2 * math.pi * i / vertices for i in range(vertices)]
    return _with_normals([(rx * math.cos(t), ry * math.sin(t)) for t in turns])


@lru_cache(maxsize=4096)
def spline(points: tuple[Point, ...], sx: float = 1.0, sy: float = 1.0, steps: int = 5) -> Shape:
    """Returns a closed Catmull-Rom curve through the points (clockwise on the picture), stretched by `sx` and `sy`."""
    curve = []
    count = len(points)
    for i in range(count):
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (points[(i + k) % count] for k in range(-1, 3))
        for step in range(steps):
            t = step / steps
            w0, w1 = -0.5 * t + t * t - 0.5 * t**3, 1 - 2.5 * t * t + 1.5 * t**3
            w2, w3 = 0.5 * t + 2 * t * t - 1.5 * t**3, -0.5 * t * t + 0.5 * t**3
            curve.append((w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3))
    return _with_normals([(x * sx, y * sy) for x, y in curve])


@lru_cache(maxsize=4096)
def polygon(points: tuple[Point, ...], sx: float = 1.0, sy: float = 1.0) -> Shape:
    """Returns a polygon (clockwise on the picture), stretched by `sx` and `sy`."""
    return _with_normals([(x * sx, y * sy) for x, y in points])


def _with_normals(points: list[Point]) -> Shape:
    shape = []
    for i, (x, y) in enumerate(points):
        (x0, y0), (x1, y1) = points[i - 1], points[(i + 1) % len(points)]
        u, v = y1 - y0, x0 - x1
        length = math.hypot(u, v) or 1.0
        shape.append((x, y, u / length, v / length))
    return tuple(shape)
