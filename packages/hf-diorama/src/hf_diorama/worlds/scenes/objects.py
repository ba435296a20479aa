"""Topic `objects`: a few coloured, textured, sized shapes on one background."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import COLORS, RGB, distance, draw_shade, srgb_to_lab
from hf_diorama.worlds.scenes.picture import Picture, annotate
from hf_diorama.worlds.scenes.shapes import SHAPES, draw_coverage, unit_area
from hf_diorama.worlds.scenes.surfaces import TEXTURES, Pixels, draw_background, draw_texture

MAX_OBJECTS = 9
INK = (0.10, 0.20)  # share of the image that all objects cover together, whatever their number and shape
CONTRAST = 90  # wanted distance of an object's colour to the background under it
TILT = 20.0  # largest rotation in degrees
GAP = 0.5  # smallest distance of two columns, in shares of an even spacing

_Disc = tuple[float, float, float]  # x, y and radius, in images


class _Object(NamedTuple):
    shape: str
    color_name: str
    rgb: RGB
    texture: str
    degrees: float
    radius: float  # of the bounding circle, in images


def _draw_objects(draws: Draws, specs: list[tuple[str, str]]) -> list[_Object]:
    """Gives each object its looks; all share the ink, so that area tells neither number nor shape."""
    weights = [draws.uniform(0.7, 1.3) for _ in specs]
    ink = draws.uniform(*INK) / sum(weights)
    objects = []
    for (color, shape), weight in zip(specs, weights, strict=True):
        radius = math.sqrt(ink * weight / unit_area(shape))
        degrees = draws.uniform(-TILT, TILT)
        objects.append(_Object(shape, color, draw_shade(draws, color), draws.choice(TEXTURES), degrees, radius))
    return objects


def _is_clear(background: Pixels, rgb: RGB, x: float, y: float, radius: float) -> bool:
    """Whether the colour stands out from the mean of the background under the object."""
    size = len(background)
    patch = background[int((y - radius) * size) : int((y + radius) * size) + 1]
    patch = patch[:, int((x - radius) * size) : int((x + radius) * size) + 1]
    mean = patch.reshape(-1, 3).sum(axis=0, dtype=np.int64) // (patch.size // 3)
    return distance(tuple(mean.tolist()), rgb) >= CONTRAST


def _is_overlapping(a: _Disc, b: _Disc) -> bool:
    """Whether two bounding circles overlap by more than 0.3 of the smaller radius."""
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) < a[2] + b[2] - 0.3 * min(a[2], b[2])


def _columns(units: list[float], radii: list[float]) -> list[float]:
    """Returns where objects stand from left to right, given sorted numbers in [0, 1), or nothing if they do not fit.

    One or two stand as the numbers fall, and are drawn anew if they are too close. For more that would hardly ever
    come out well, and the smallest gap is built in.
    """
    if len(units) <= 2:
        return [radius + unit * (1 - 2 * radius) for unit, radius in zip(units, radii, strict=True)]
    gap = GAP / len(units)
    slack = 1 - 2 * max(radii) - gap * (len(units) - 1)
    return [max(radii) + unit * slack + gap * place for place, unit in enumerate(units)] if slack >= 0 else []


def _find_room(
    draws: Draws, item: _Object, radius: float, column: float | None, placed: list[_Disc], gap: float, below: Pixels
) -> _Disc | None:
    """Returns a disc for the object among those placed, in its column if it has one, or None after 24 attempts."""
    for attempt in range(24):
        x = radius + draws.unit() * (1 - 2 * radius) if column is None else column
        y = radius + draws.unit() * (1 - 2 * radius)
        if column is not None and placed and x - placed[-1][0] < gap:
            continue
        if any(_is_overlapping((x, y, radius), other) for other in placed):
            continue
        if attempt < 8 and not _is_clear(below, item.rgb, x, y, radius):
            continue
        return x, y, radius
    return None


def _place(draws: Draws, objects: list[_Object], background: Pixels, ordered: bool) -> list[_Disc]:
    """Returns centre and radius of each object, in images: inside the image, overlapping a little at most.

    If `ordered`, the objects stand from left to right, neighbours half of an even spacing apart at least. Objects for
    which no room is found are all made smaller. That ends: discs whose radius is half of the gap fit in any columns.
    """
    scale = 1.0
    while True:
        radii = [item.radius * scale for item in objects]
        units = sorted(draws.unit() for _ in objects)
        columns = _columns(units, radii) if ordered else [None] * len(objects)
        placed: list[_Disc] = []
        for item, radius, column in zip(objects, radii, columns, strict=False):
            disc = _find_room(draws, item, radius, column, placed, GAP / len(objects), background)
            if disc is None:
                break
            placed.append(disc)
        if len(placed) == len(objects):
            return placed
        scale *= 0.97


def render_objects(
    key: RowKey,
    image_size: int,
    *,
    num_objects: tuple[int, int] = (1, MAX_OBJECTS),
    pinned: Sequence[tuple[str, str]] | None = None,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
) -> dict[str, Any]:
    """Returns image, label map, scene type and annotated objects of one scene.

    Args:
        key (`RowKey`): name of the row.
        image_size (`int`): height and width in pixels.
        num_objects (`tuple[int, int]`, defaults to `(1, 9)`): smallest and largest number of objects.
        pinned (sequence of `(color, category)`, *optional*):
            Objects to show from left to right, in place of random ones.
        photos (sequence of `PIL.Image.Image` or of rows with an `image`, *optional*): photos for the background.
        photo_ratio (`float`, defaults to 0.5): share of scenes on a photo, where photos are given.
    """
    draws = key.draws("objects")
    if pinned is None:
        low, high = num_objects
        specs = [(draws.choice(tuple(COLORS)), draws.choice(SHAPES)) for _ in range(draws.integer(low, high + 1))]
    else:
        specs = list(pinned)
    objects = _draw_objects(draws, specs)
    avoid = [item.rgb for item in objects]
    scene_type, background = draw_background(image_size, key.draws("background"), avoid, photos, photo_ratio)
    places = _place(draws, objects, background, ordered=pinned is not None)

    picture = Picture(background)
    for label, (item, (x, y, radius)) in enumerate(zip(objects, places, strict=True), start=1):
        left, top = math.floor((x - radius) * image_size), math.floor((y - radius) * image_size)
        side = math.ceil(2 * radius * image_size) + 2
        center = (x * image_size - left, y * image_size - top)
        coverage = draw_coverage(item.shape, center, radius * image_size, item.degrees, side)
        period = max(2, round(radius * image_size / 4))
        fill = draw_texture(item.texture, side, item.rgb, period, draws)
        # Cut off at the rim: an object has no pixel beyond it, and none counts as hidden there.
        box = (0, 0, min(side, image_size - left), min(side, image_size - top))
        picture.paste(fill.crop(box), coverage.crop(box), (left, top), label)
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [
            annotate(
                picture,
                label,
                item.shape,
                color_srgb=list(item.rgb),
                color_lab=list(srgb_to_lab(item.rgb)),
                color_name=item.color_name,
                texture=item.texture,
            )
            for label, item in enumerate(objects, start=1)
        ],
    }
