"""Topic `scene`: what place the picture shows, told by its layout and not by its colours."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.palette import RGB, distance, shade_of
from hf_diorama.worlds.scenes.picture import Layer, Picture, Polygon, ellipse, rectangle, stroke
from hf_diorama.worlds.scenes.shapes import Point

Palette = tuple[RGB, RGB, RGB, RGB]
"""Sky, ground, things and their details: four colours apart, drawn in the same way for every place."""


def _hill(draws: Draws, top: float, height: float, waves: int) -> Polygon:
    """Returns the ground under a smooth skyline through random points."""
    knots = [top - draws.uniform(0, height) for _ in range(waves + 1)]
    points: list[Point] = []
    for i in range(waves):
        for step in range(8):
            t = step / 8
            ease = t * t * (3 - 2 * t)
            points.append(((i + t) / waves, knots[i] * (1 - ease) + knots[i + 1] * ease))
    return [*points, (1.0, knots[-1]), (1.0, 1.0), (0.0, 1.0)]


def _desert(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    layers: list[Layer] = [(ground, [_hill(draws, horizon, 0.12, 3)])]
    layers.append((shade_of(ground), [_hill(draws, horizon + 0.2, 0.12, 2)]))
    layers.append((detail, [ellipse(draws.uniform(0.1, 0.9), horizon - 0.3, 0.07, 0.07)]))
    for _ in range(draws.integer(1, 4)):  # a cactus
        x, y, h = draws.uniform(0.08, 0.92), draws.uniform(horizon + 0.1, 0.95), draws.uniform(0.18, 0.3)
        arms = [(x - 0.3 * h, y - 0.75 * h), (x - 0.3 * h, y - 0.45 * h), (x, y - 0.45 * h)]
        layers.append((thing, stroke([(x, y), (x, y - h)], 0.16 * h) + stroke(arms, 0.12 * h)))
    return layers


def _sea(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    layers: list[Layer] = [(ground, [rectangle(0, horizon, 1, 1)])]
    crests: list[Polygon] = []
    for _ in range(draws.integer(9, 15)):
        x, y, w = draws.uniform(-0.05, 0.95), draws.uniform(horizon + 0.04, 0.98), draws.uniform(0.08, 0.25)
        crests += stroke([(x, y), (x + w / 4, y - 0.015), (x + w / 2, y), (x + w, y - 0.01)], 0.014)
    layers.append((shade_of(ground), crests))
    x, w = draws.uniform(0.2, 0.8), draws.uniform(0.08, 0.15)  # a boat
    y = horizon + draws.uniform(0.02, 0.2)
    layers.append((thing, [[(x - w, y - 0.05), (x + w, y - 0.05), (x + w * 0.7, y + 0.02), (x - w * 0.7, y + 0.02)]]))
    layers.append((detail, [[(x, y - 0.06), (x, y - 0.32), (x + w, y - 0.09)]]))
    return layers


def _forest(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    layers: list[Layer] = [(ground, [rectangle(0, horizon, 1, 1)])]
    feet = sorted(draws.uniform(horizon, 0.98) for _ in range(draws.integer(9, 14)))
    for y in feet:
        x, h = draws.uniform(0.0, 1.0), 0.3 + 0.4 * (y - horizon)
        layers.append((detail, [rectangle(x - 0.08 * h, y - 0.5 * h, x + 0.08 * h, y)]))
        crowns = [[(x - 0.3 * h, y - s * h), (x, y - (s + 0.5) * h), (x + 0.3 * h, y - s * h)] for s in (0.35, 0.65)]
        layers.append((thing, crowns))
    return layers


def _city(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    layers: list[Layer] = [(ground, [rectangle(0, horizon + 0.3, 1, 1)])]
    left = -draws.uniform(0, 0.08)
    while left < 1:
        width, top = draws.uniform(0.12, 0.22), horizon - draws.uniform(-0.15, 0.32)
        layers.append((thing if draws.chance(0.5) else shade_of(thing), [rectangle(left, top, left + width, 1)]))
        windows = [
            rectangle(left + (i + 0.25) * width / 3, y, left + (i + 0.75) * width / 3, y + 0.04)
            for y in np.arange(top + 0.04, 0.94, 0.085).tolist()
            for i in range(3)
            if draws.chance(0.7)
        ]
        layers.append((detail, windows))
        left += width + 0.01
    return [layer for layer in layers if layer[1]]


def _mountain(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    layers: list[Layer] = []
    foot = horizon + 0.2
    for _ in range(draws.integer(2, 5)):
        x, w, top = draws.uniform(0.1, 0.9), draws.uniform(0.25, 0.45), draws.uniform(0.08, 0.3)
        layers.append((thing, [[(x - w, foot), (x, top), (x + w, foot)]]))
        share = draws.uniform(0.25, 0.4)  # the cap
        low = top + share * (foot - top)
        teeth = [(x + w * share * t, low + (0.04 if i % 2 else -0.02)) for i, t in enumerate((0.5, 0.0, -0.5))]
        layers.append((detail, [[(x, top), (x + w * share, low), *teeth, (x - w * share, low)]]))
    return [*layers, (ground, [rectangle(0, foot - 0.01, 1, 1)])]


def _field(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    layers: list[Layer] = [(ground, [rectangle(0, horizon, 1, 1)])]
    x, count = draws.uniform(0.2, 0.8), draws.integer(6, 10)
    furrows = [
        [(x, horizon), (x + s + 0.06, 1.0), (x + s - 0.06, 1.0)] for s in np.linspace(-1.6, 1.6, 2 * count).tolist()
    ]
    layers.append((shade_of(ground), furrows))
    y = draws.uniform(horizon + 0.1, 0.85)  # a fence
    posts = [rectangle(p - 0.012, y - 0.13, p + 0.012, y + 0.02) for p in np.arange(0.05, 1, 0.15).tolist()]
    layers.append((thing, [*posts, rectangle(0, y - 0.1, 1, y - 0.075), rectangle(0, y - 0.045, 1, y - 0.02)]))
    layers.append((detail, [ellipse(draws.uniform(0.1, 0.9), horizon - 0.02, 0.12, 0.05)]))
    return layers


def _road(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    _, ground, thing, detail = colors
    x, far = draws.uniform(0.35, 0.65), draws.uniform(0.02, 0.05)
    base = 0.5 + draws.uniform(-0.15, 0.15)
    layers: list[Layer] = [(ground, [rectangle(0, horizon, 1, 1)])]
    layers.append((thing, [[(x - far, horizon), (x + far, horizon), (base + 0.45, 1.0), (base - 0.45, 1.0)]]))
    dashes: list[Polygon] = []
    for near, end in ((0.06, 0.14), (0.22, 0.36), (0.48, 0.7), (0.84, 1.0)):
        ys, xs = [horizon + s * (1 - horizon) for s in (near, end)], [x + s * (base - x) for s in (near, end)]
        ws = [0.005 + 0.03 * s for s in (near, end)]
        dashes.append([(xs[0] - ws[0], ys[0]), (xs[0] + ws[0], ys[0]), (xs[1] + ws[1], ys[1]), (xs[1] - ws[1], ys[1])])
    return [*layers, (detail, dashes)]


def _room(draws: Draws, horizon: float, colors: Palette) -> list[Layer]:
    sky, ground, thing, detail = colors
    x0, y0 = draws.uniform(0.12, 0.3), draws.uniform(0.1, 0.22)
    x1, y1 = draws.uniform(0.7, 0.88), draws.uniform(0.6, 0.75)
    walls: list[Layer] = [
        (shade_of(sky), [[(0, 0), (x0, y0), (x0, y1), (0, 1)], [(1, 0), (x1, y0), (x1, y1), (1, 1)]]),
        (ground, [[(0, 1), (x0, y1), (x1, y1), (1, 1)]]),
    ]
    w = draws.uniform(x0 + 0.05, x1 - 0.25)  # a window with a cross, and a table
    walls.append((detail, [rectangle(w, y0 + 0.08, w + 0.2, y0 + 0.28)]))
    walls.append(
        (sky, [rectangle(w + 0.09, y0 + 0.08, w + 0.11, y0 + 0.28), rectangle(w, y0 + 0.17, w + 0.2, y0 + 0.19)])
    )
    t = draws.uniform(0.25, 0.6)
    table = [rectangle(t, 0.68, t + 0.3, 0.72), rectangle(t + 0.02, 0.7, t + 0.05, 0.9)]
    return [*walls, (thing, [*table, rectangle(t + 0.25, 0.7, t + 0.28, 0.9)])]


PLACES: dict[str, Callable[[Draws, float, Palette], list[Layer]]] = {
    "desert": _desert,
    "sea": _sea,
    "forest": _forest,
    "city": _city,
    "mountain": _mountain,
    "field": _field,
    "road": _road,
    "room": _room,
}


def _draw_palette(draws: Draws) -> Palette:
    colors: list[RGB] = []
    while len(colors) < 4:
        color = (draws.integer(20, 240), draws.integer(20, 240), draws.integer(20, 240))
        if all(distance(color, other) >= 110 for other in colors):
            colors.append(color)
    return colors[0], colors[1], colors[2], colors[3]


def render_scene(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; `scene_type` is one of [`PLACES`]. The place is the picture, so `photos` are left out."""
    draws = key.draws("scene")
    place, colors = draws.choice(tuple(PLACES)), _draw_palette(draws)
    horizon = draws.uniform(0.38, 0.55)
    top, bottom = np.asarray(colors[0]), np.asarray([channel * 8 // 10 for channel in colors[0]])
    share = np.arange(image_size)[:, None, None]
    sky = (top * share + bottom * (image_size - share)) // image_size
    picture = Picture(np.broadcast_to(sky, (image_size, image_size, 3)).astype(np.uint8))
    picture.paint(PLACES[place](draws, horizon, colors), (0, 0), image_size)
    image = picture.image
    if draws.chance(0.5):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return {"image": image, "mask": Image.fromarray(picture.labels), "scene_type": place}
