"""Topic `existence`: views of one scene in which a single thing is missing or new, or nothing is."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import COLORS, draw_shade
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.shapes import SHAPES, draw_coverage
from hf_diorama.worlds.scenes.surfaces import draw_background

VIEWS = ("base", "relit", "one missing", "another missing", "one new")
"""What the views of a group show, in an order that differs from group to group."""
RADIUS = (0.09, 0.14)
LIGHT = 10
"""Largest change of all channels between views, so that equal scenes are not equal pixels."""


def _draw_places(draws: Draws, count: int) -> list[tuple[float, float]]:
    """Returns centres in distinct cells of a grid of three by three, in images."""
    cells = draws.sample(range(9), count)
    return [
        ((cell % 3 + draws.uniform(0.44, 0.56)) / 3, (cell // 3 + draws.uniform(0.44, 0.56)) / 3) for cell in cells
    ]


def render_existence(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one view of a scene; rows `5 g` to `5 g + 4` are the views of group `g` and share `group_id`.

    The views show the same background and things at the same places, but for what [`VIEWS`] says.
    """
    group = key.index // len(VIEWS)
    shared = dataclasses.replace(key, index=group)
    draws = shared.draws("existence group")
    order = draws.sample(range(len(VIEWS)), len(VIEWS))
    view = VIEWS[order[key.index % len(VIEWS)]]
    count = draws.integer(3, 6)
    kinds = draws.sample([(color, shape) for color in COLORS for shape in SHAPES], count + 1)
    colors = [draw_shade(draws, color) for color, _ in kinds]
    places = _draw_places(draws, count + 1)
    looks = [(draws.uniform(*RADIUS), draws.uniform(-20, 20)) for _ in kinds]
    missing = {"one missing": 0, "another missing": 1}.get(view)
    shown = [i for i in range(count + (view == "one new")) if i != missing]

    scene_type, background = draw_background(
        image_size, shared.draws("existence background"), colors, photos, photo_ratio
    )
    picture = Picture(background)
    for label, i in enumerate(shown, start=1):
        radius, degrees = looks[i]
        pixels = radius * image_size
        x, y = places[i][0] * image_size, places[i][1] * image_size
        left, top, side = math.floor(x - pixels), math.floor(y - pixels), math.ceil(2 * pixels) + 2
        coverage = draw_coverage(kinds[i][1], (x - left, y - top), pixels, degrees, side)
        picture.paste(colors[i], coverage, (left, top), label)
    light = 0 if view == "base" else key.draws("existence light").integer(-LIGHT, LIGHT + 1)
    lit = np.clip(np.asarray(picture.image).astype(np.int64) + light, 0, 255).astype(np.uint8)
    return {
        "image": Image.fromarray(lit),
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [
            annotate(picture, label, kinds[i][1], texture="plain", **color_entry(colors[i]))
            for label, i in enumerate(shown, start=1)
        ],
        "states": [view],
        "group_id": f"{key.split}-{key.seed}-existence-{group}",
    }
