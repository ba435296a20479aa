"""A picture and its label map, painted from back to front, and the outlines that figures are made of."""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hf_diorama.worlds.masks import Mask, extent
from hf_diorama.worlds.scenes.palette import COLORS, RGB, srgb_to_lab
from hf_diorama.worlds.scenes.shapes import SUPERSAMPLING, Point
from hf_diorama.worlds.scenes.surfaces import Pixels

Polygon = Sequence[Point]
Layer = tuple[RGB, Sequence[Polygon]]
"""A colour and the union of polygons it fills, in units of the radius, y pointing down."""


class Picture:
    """A picture and a label map of the same size, painted from back to front.

    Corners are rounded to the supersampled pixel grid, so that the last bit of a sine never moves a pixel. A pixel has
    the label of the object painted last that covers half of it at least.

    Args:
        background (`numpy.ndarray` of shape `(size, size, 3)`, uint8): what is painted on.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_diorama.worlds.scenes.picture import Picture, ellipse
    >>> picture = Picture(np.zeros((32, 32, 3), np.uint8))
    >>> picture.paint([((255, 0, 0), [ellipse(0, 0, 1, 1)])], center=(16, 16), radius=8, label=1)
    >>> picture.bbox(1)
    [8, 8, 24, 24]

    ```
    """

    def __init__(self, background: Pixels):
        self.size = len(background)
        self.image = Image.fromarray(background)
        self.labels = np.zeros((self.size, self.size), np.uint8)
        self._full_areas: dict[int, int] = {}

    def paint(
        self, layers: Iterable[Layer], center: Point, radius: float, degrees: float = 0.0, label: int = 0
    ) -> None:
        """Paints layers, scaled to `radius` pixels and turned clockwise, around `center`; label 0 leaves the map."""
        cos, sin = math.cos(math.radians(degrees)) * radius, math.sin(math.radians(degrees)) * radius
        placed = [
            (color, [[(center[0] + cos * x - sin * y, center[1] + sin * x + cos * y) for x, y in p] for p in polygons])
            for color, polygons in layers
        ]
        points = [point for _, polygons in placed for polygon in polygons for point in polygon]
        left, top = (math.floor(min(point[axis] for point in points)) - 1 for axis in (0, 1))
        right, bottom = (math.ceil(max(point[axis] for point in points)) + 2 for axis in (0, 1))
        union = Image.new("L", (right - left, bottom - top))
        for color, polygons in placed:
            coverage = _cover(polygons, (left, top), union.size)
            self.image.paste(color, (left, top), coverage)
            union.paste(255, (0, 0), coverage)
        self._mark(union, (left, top), label)

    def paste(self, fill: Image.Image | RGB, coverage: Image.Image, corner: tuple[int, int], label: int = 0) -> None:
        """Paints a colour, or an image of the same size, where `coverage` (mode `L`) says, with its left top corner
        at `corner` in pixels."""
        self.image.paste(fill, corner, coverage)
        self._mark(coverage, corner, label)

    def _mark(self, coverage: Image.Image, corner: tuple[int, int], label: int) -> None:
        if not label:
            return
        # What covers no pixel by half, a thin stroke or a thing far away, has the pixels that it covers most.
        peak = int(coverage.getextrema()[1])  # type: ignore[arg-type]  # one band
        covered = np.asarray(coverage) >= (128 if peak >= 128 else max(peak // 2, 1))
        self._full_areas[label] = self._full_areas.get(label, 0) + int(covered.sum())
        left, top = corner
        covered = covered[max(-top, 0) : max(self.size - top, 0), max(-left, 0) : max(self.size - left, 0)]
        window = self.labels[max(top, 0) :, max(left, 0) :][: covered.shape[0], : covered.shape[1]]
        window[covered] = label

    def frame(self, box: Sequence[int], color: RGB, width: int) -> None:
        """Draws a box of `width` pixels around a half-open pixel box: outside of it, one pixel away."""
        x0, y0, x1, y1 = box
        outer = (x0 - 1 - width, y0 - 1 - width, x1 + width, y1 + width)
        ImageDraw.Draw(self.image).rectangle(outer, outline=color, width=width)

    def mask(self, label: int) -> Mask:
        """Returns where the label is visible (`numpy.ndarray` of shape `(size, size)`, bool)."""
        visible: Mask = self.labels == label
        return visible

    def bbox(self, label: int) -> list[int]:
        """Returns the half-open extent of the visible label, `[x0, y0, x1, y1]` in pixels; empty if hidden."""
        return extent(self.mask(label))

    def occlusion(self, label: int) -> float:
        """Returns the share of the object's pixels that something painted later, or the rim of the image, hides."""
        full = self._full_areas.get(label, 0)
        return 1 - int(self.mask(label).sum()) / full if full else 1.0

    def full_area(self, label: int) -> int:
        """Returns how many pixels the object would show if nothing hid it."""
        return self._full_areas.get(label, 0)


def _cover(polygons: Sequence[Polygon], corner: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    canvas = ImageDraw.Draw(mask)
    for polygon in polygons:
        points = [(round((x - corner[0]) * SUPERSAMPLING), round((y - corner[1]) * SUPERSAMPLING)) for x, y in polygon]
        canvas.polygon(points, fill=255)
    return mask.reduce(SUPERSAMPLING)


@lru_cache(maxsize=512)
def _circle(steps: int) -> tuple[Point, ...]:
    return tuple((math.cos(2 * math.pi * i / steps), math.sin(2 * math.pi * i / steps)) for i in range(steps))


def ellipse(x: float, y: float, rx: float, ry: float, steps: int = 24) -> Polygon:
    """Returns the outline of an ellipse with axes along the picture's."""
    return [(x + rx * cos, y + ry * sin) for cos, sin in _circle(steps)]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """Returns the outline of a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def stroke(points: Sequence[Point], width: float) -> list[Polygon]:
    """Returns the polygons of a line through the points, with round joints and ends."""
    polygons = [ellipse(x, y, width / 2, width / 2, 12) for x, y in points]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        u, v = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
        polygons.append([(x0 + u, y0 + v), (x1 + u, y1 + v), (x1 - u, y1 - v), (x0 - u, y0 - v)])
    return polygons


def annotate(picture: Picture, label: int, category: str, **known: Any) -> dict[str, Any]:
    """Returns the entry of `objects` for a label; what is not given in `known` is absent, never invented."""
    absent = dict.fromkeys(
        ("subcategory", "color_srgb", "color_lab", "color_name", "texture", "position", "distance", "azimuth")
    )
    return {
        **absent,
        "subcategory": "",
        "category": category,
        "size": math.sqrt(picture.full_area(label)),
        "bbox": picture.bbox(label),
        "occlusion": picture.occlusion(label),
        **known,
    }


def color_entry(rgb: RGB) -> dict[str, Any]:
    """Returns the three colour fields of an entry of `objects`; the name is that of the nearest basic colour."""
    lab = srgb_to_lab(rgb)
    name = min(COLORS, key=lambda other: math.dist(lab, srgb_to_lab(COLORS[other])))
    return {"color_srgb": list(rgb), "color_lab": list(lab), "color_name": name}
