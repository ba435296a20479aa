"""Topic `temporal`: frames of a plant that grows, a candle that burns, ice that melts, or a pendulum that swings."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Layer, Picture, annotate, ellipse, rectangle, stroke
from hf_diorama.worlds.scenes.state import build_candle
from hf_diorama.worlds.scenes.surfaces import draw_background

STEPS = 6
"""Frames of a sequence."""
LIGHT = 6


def _plant(progress: float, color: RGB) -> list[Layer]:
    height = 0.15 + 1.25 * progress
    leaves = [
        ellipse(side * 0.2, 0.5 - share * height, 0.2, 0.08)
        for share, side in ((0.25, 1), (0.45, -1), (0.65, 1), (0.85, -1))
        if share * height > 0.12
    ]
    layers: list[Layer] = [((60, 140, 60), [*stroke([(0, 0.5), (0, 0.5 - height)], 0.07), *leaves])]
    layers.append((color, [ellipse(0, 0.5 - height, 0.06 + 0.12 * progress, 0.06 + 0.12 * progress)]))
    layers.append(((150, 80, 50), [[(-0.4, 0.45), (0.4, 0.45), (0.3, 0.95), (-0.3, 0.95)]]))
    return layers


def _candle(progress: float, color: RGB) -> list[Layer]:
    return build_candle(0.05 + 0.85 * progress, color)


def _ice(progress: float, color: RGB) -> list[Layer]:
    """A cube that shrinks and the puddle that it leaves; the saucer has its colour."""
    side, puddle = 0.62 * math.sqrt(1 - 0.93 * progress), 0.9 * math.sqrt(0.02 + 0.75 * progress)
    return [
        (color, [ellipse(0, 0.62, 0.97, 0.3, 40)]),
        ((120, 175, 225), [ellipse(0, 0.62, puddle, puddle * 0.28, 32)]),
        ((205, 232, 250), [rectangle(-side, 0.62 - 2 * side * 0.85, side, 0.62)]),
        ((240, 250, 255), [rectangle(-side * 0.7, 0.62 - 1.6 * side, -side * 0.3, 0.62 - 0.5 * side)]),
    ]


def _pendulum(progress: float, color: RGB) -> list[Layer]:
    angle = math.radians(50) * math.sin(2 * math.pi * progress)
    x, y = 1.5 * math.sin(angle), -0.9 + 1.5 * math.cos(angle)
    return [
        ((60, 55, 50), [rectangle(-0.5, -0.97, 0.5, -0.87), *stroke([(0, -0.9), (x, y)], 0.05)]),
        (color, [ellipse(x, y, 0.2, 0.2)]),
    ]


SEQUENCES: dict[str, tuple[bool, Callable[[float, RGB], list[Layer]]]] = {
    "plant": (True, _plant),
    "candle": (True, _candle),
    "ice": (True, _ice),
    "pendulum": (False, _pendulum),
}
"""Category -> whether it can only go one way, and how it looks after a share of its course."""


def _draw_course(draws: Draws) -> list[float]:
    """Returns the progress at each step: it starts anywhere in the first third and always grows by 0.06 at least."""
    start = draws.uniform(0.0, 0.3)
    gaps = [draws.uniform(0.5, 1.5) for _ in range(STEPS - 1)]
    reach = draws.uniform(0.5, 1.0 - start)
    free = reach - 0.06 * (STEPS - 1)
    course = [start]
    for gap in gaps:
        course.append(course[-1] + 0.06 + free * gap / sum(gaps))
    return course


def render_temporal(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one frame; rows `6 g` to `6 g + 5` are the frames of sequence `g`, in order, and share `group_id`.

    `states` says whether what happens is `"irreversible"` or `"reversible"` (then no frame tells which came first),
    `levels` holds the `progress`, a share of the whole course.
    """
    group, step = divmod(key.index, STEPS)
    shared = dataclasses.replace(key, index=group)
    draws = shared.draws("temporal group")
    category = draws.choice(tuple(SEQUENCES))
    is_irreversible, build = SEQUENCES[category]
    progress = _draw_course(draws)[step]
    red, green, blue = (draws.integer(60, 246) for _ in range(3))
    color: RGB = (red, green, blue)
    radius = draws.uniform(0.28, 0.4)
    x, y = (draws.uniform(radius, 1 - radius) * image_size for _ in range(2))
    scene_type, background = draw_background(
        image_size, shared.draws("temporal background"), [color], photos, photo_ratio
    )
    picture = Picture(background)
    picture.paint(build(progress, color), (x, y), radius * image_size, label=1)
    light = key.draws("temporal light").integer(-LIGHT, LIGHT + 1)
    lit = np.clip(np.asarray(picture.image).astype(np.int64) + light, 0, 255).astype(np.uint8)
    return {
        "image": Image.fromarray(lit),
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [annotate(picture, 1, category)],
        "states": ["irreversible" if is_irreversible else "reversible"],
        "levels": [{"name": "progress", "value": progress}],
        "group_id": f"{key.split}-{key.seed}-temporal-{group}",
        "time_step": step,
    }
