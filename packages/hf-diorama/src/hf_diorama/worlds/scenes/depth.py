"""Topic `depth`: how far away a thing of known height is, and which of two is closer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.floor import (
    CAMERA,
    FARTHEST,
    HEIGHTS,
    NEAREST,
    build_thing,
    draw_floor,
    place_thing,
)
from hf_diorama.worlds.scenes.glyphs import draw_color, mark
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry

RATIO = (1.25, 3.0)
"""Smallest and largest ratio of the two distances."""
RAISED = 0.5
"""Share of the rows in which both things hang at any height, so that only their size tells their distance."""
KIND_PAIRS = tuple((short, tall) for short in HEIGHTS for tall in HEIGHTS if HEIGHTS[tall] >= 1.5 * HEIGHTS[short])
"""Kinds whose heights differ enough for the shorter one to be nearer and yet look shorter."""


class _Thing(NamedTuple):
    kind: str
    x: float
    z: float
    raised: float

    def box(self) -> tuple[float, float, float, float]:
        """Returns the box of the whole thing on the picture, in images."""
        layers = build_thing(self.kind, (0, 0, 0))
        reach = max(x for _, polygons in layers for polygon in polygons for x, _ in polygon)
        scale = CAMERA.focal * HEIGHTS[self.kind] / self.z
        column, row = CAMERA.project(self.x, self.z, self.raised)
        return column - reach * scale, row - scale, column + reach * scale, row


def _draw_distance(draws: Draws) -> float:
    """Returns a distance whose logarithm is uniform."""
    return float(NEAREST * (FARTHEST / NEAREST) ** draws.unit())


def _draw_pair(draws: Draws, raised: bool) -> list[_Thing]:
    """Returns the nearer and the farther thing, inside the picture and apart.

    Two coins are tossed first: whether the kind that is taller in life is the nearer one, and, if they are raised,
    whether the nearer thing stands lower on the picture. The taller kind looks taller in either case, so that neither
    the kinds nor their size on the picture tell who is closer: only the one seen with the other.
    """
    tall_is_near, lower = draws.chance(0.5), draws.chance(0.5)
    short, tall = draws.choice(KIND_PAIRS)
    kinds = (tall, short) if tall_is_near else (short, tall)
    farthest_ratio = min(RATIO[1], 0.95 * HEIGHTS[tall] / HEIGHTS[short])
    while True:
        near = _draw_distance(draws)
        far = near * draws.uniform(RATIO[0], farthest_ratio)
        if far > FARTHEST:
            continue
        for _ in range(10):
            things = []
            for kind, z in zip(kinds, (near, far), strict=True):
                x = draws.uniform(-0.45, 0.45) * z / CAMERA.focal
                things.append(_Thing(kind, x, z, draws.uniform(0, 0.3) * z if raised else 0.0))
            boxes = [thing.box() for thing in things]
            if raised and (boxes[0][3] > boxes[1][3]) != lower:
                continue
            if all(min(box) >= 0.05 and max(box) <= 0.95 for box in boxes) and not _is_close(boxes[0], boxes[1]):
                return things


def _is_close(a: tuple[float, ...], b: tuple[float, ...], gap: float = 0.07) -> bool:
    """Whether two boxes overlap or have less than `gap` between them."""
    return not (a[2] + gap < b[0] or b[2] + gap < a[0] or a[3] + gap < b[1] or b[3] + gap < a[1])


def render_depth(
    key: RowKey,
    image_size: int,
    *,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row; the first object (red box) and the second (blue box) differ in kind and `distance`.

    `position` is in metres: to the right of the camera, over the floor (of the foot), in front. `states` holds
    `"raised"` where things hang in the air. The floor is the scene, so `photos` are left out.
    """
    draws = key.draws("depth")
    raised = draws.chance(RAISED)
    things = _draw_pair(draws, raised)
    order = [0, 1] if draws.chance(0.5) else [1, 0]
    picture = Picture(draw_floor(image_size, draws))
    colors: list[RGB] = [draw_color(draws) for _ in things]
    for index in (1, 0):  # the farther one first
        thing, label = things[index], order.index(index) + 1
        place_thing(picture, thing.kind, colors[index], (thing.x, thing.z, thing.raised), label)
    objects = []
    for label, index in enumerate(order, start=1):
        thing = things[index]
        position = [thing.x, thing.raised, thing.z]
        entry = annotate(picture, label, thing.kind, distance=thing.z, position=position, **color_entry(colors[index]))
        # A thing smaller than half a pixel has no pixel of its own: its box is that of its projection.
        entry["bbox"] = entry["bbox"] or _pixel_box(thing.box(), image_size)
        objects.append(entry)
    if boxes:
        mark(picture, objects[0]["bbox"], objects[1]["bbox"])
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": "floor",
        "objects": objects,
        "states": ["raised"] if raised else [],
    }


def _pixel_box(box: Sequence[float], size: int) -> list[int]:
    x0, y0 = int(box[0] * size), int(box[1] * size)
    return [x0, y0, max(int(box[2] * size), x0) + 1, max(int(box[3] * size), y0) + 1]
