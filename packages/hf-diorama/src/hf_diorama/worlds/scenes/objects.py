"""Topic `objects`: a few coloured, textured, sized shapes on one background."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import COLORS, RGB, distance, draw_shade, srgb_to_lab
from hf_diorama.worlds.scenes.shapes import SHAPES, draw_coverage, unit_area
from hf_diorama.worlds.scenes.surfaces import TEXTURES, Pixels, draw_background, draw_texture

MAX_OBJECTS = 9
INK = (0.10, 0.20)  # share of the image that all objects cover together, whatever their number and shape
CONTRAST = 90  # wanted distance of an object's colour to the background under it
TILT = 20.0  # largest rotation in degrees


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


def _overlap(a: _Disc, b: _Disc) -> bool:
    """Whether two bounding circles overlap by more than 0.3 of the smaller radius."""
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) < a[2] + b[2] - 0.3 * min(a[2], b[2])


def _place(draws: Draws, objects: list[_Object], background: Pixels, ordered: bool) -> list[_Disc]:
    """Returns centre and radius of each object, in images: inside the image, overlapping a little at most.

    If `ordered`, the objects stand from left to right, neighbours half of an even spacing apart at least. Objects for
    which no room is found are all made smaller.
    """
    scale = 1.0
    while True:
        columns = sorted(draws.unit() for _ in objects)
        placed: list[_Disc] = []
        for column, item in zip(columns, objects, strict=True):
            radius = item.radius * scale
            for attempt in range(24):
                x = radius + (column if ordered else draws.unit()) * (1 - 2 * radius)
                y = radius + draws.unit() * (1 - 2 * radius)
                if ordered and placed and x - placed[-1][0] < 0.5 / len(objects):
                    continue
                if any(_overlap((x, y, radius), other) for other in placed):
                    continue
                if attempt < 8 and not _is_clear(background, item.rgb, x, y, radius):
                    continue
                placed.append((x, y, radius))
                break
            else:
                break
        if len(placed) == len(objects):
            return placed
        scale *= 0.97


def render_objects(
    key: RowKey,
    image_size: int,
    *,
    num_objects: int | Sequence[int] = (1, MAX_OBJECTS),
    pinned: Sequence[tuple[str, str]] | None = None,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
) -> dict[str, Any]:
    """Returns image, label map, scene type and annotated objects of one scene.

    Args:
        key (`RowKey`): name of the row.
        image_size (`int`): height and width in pixels.
        num_objects (`int` or `tuple[int, int]`, defaults to `(1, 9)`): number of objects, or its smallest and largest.
        pinned (sequence of `(color, category)`, *optional*):
            Objects to show from left to right, in place of random ones.
        photos (sequence of `PIL.Image.Image` or of rows with an `image`, *optional*): photos for the background.
        photo_ratio (`float`, defaults to 0.5): share of scenes on a photo, where photos are given.
    """
    draws = key.draws("objects")
    if pinned is None:
        low, high = (num_objects, num_objects) if isinstance(num_objects, int) else num_objects
        specs = [(draws.choice(tuple(COLORS)), draws.choice(SHAPES)) for _ in range(draws.integer(low, high + 1))]
    else:
        specs = list(pinned)
    objects = _draw_objects(draws, specs)
    avoid = [item.rgb for item in objects]
    scene_type, background = draw_background(image_size, key.draws("background"), avoid, photos, photo_ratio)
    places = _place(draws, objects, background, ordered=pinned is not None)

    image = Image.fromarray(background)
    labels = np.zeros((image_size, image_size), np.uint8)
    full_areas = []
    for index, (item, (x, y, radius)) in enumerate(zip(objects, places, strict=True)):
        left, top = math.floor((x - radius) * image_size), math.floor((y - radius) * image_size)
        side = math.ceil(2 * radius * image_size) + 2
        center = (x * image_size - left, y * image_size - top)
        coverage = draw_coverage(item.shape, center, radius * image_size, item.degrees, side)
        period = max(2, round(radius * image_size / 4))
        image.paste(draw_texture(item.texture, side, item.rgb, period, draws), (left, top), coverage)
        inside = np.asarray(coverage)[: image_size - top, : image_size - left] >= 128
        labels[top : top + side, left : left + side][inside] = index + 1
        full_areas.append(int(inside.sum()))
    return {
        "image": image,
        "mask": Image.fromarray(labels),
        "scene_type": scene_type,
        "objects": [_annotate(item, labels == index + 1, full_areas[index]) for index, item in enumerate(objects)],
    }


def _annotate(item: _Object, visible: np.ndarray[Any, np.dtype[np.bool_]], full_area: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return {
        "category": item.shape,
        "subcategory": "",
        "color_srgb": list(item.rgb),
        "color_lab": list(srgb_to_lab(item.rgb)),
        "color_name": item.color_name,
        "texture": item.texture,
        "size": math.sqrt(full_area),
        "position": None,
        "distance": None,
        "azimuth": None,
        "bbox": [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1],
        "occlusion": 1 - int(visible.sum()) / full_area,
    }
