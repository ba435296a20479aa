"""Topic `texture`: which pattern covers the picture, at any period, phase, direction and pair of colours."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.masks import Mask
from hf_diorama.worlds.scenes.glyphs import draw_color
from hf_diorama.worlds.scenes.picture import Picture, annotate

Grid = npt.NDArray[np.int64]
TURNS = ((1, 0, 1), (0, 1, 1), (3, 4, 5), (4, 3, 5), (5, 12, 13), (12, 5, 13), (-3, 4, 5), (-4, 3, 5), (-5, 12, 13))
"""Directions with a whole length, so that turned coordinates are exact integers: cosine, sine and length."""


def _cell(values: Grid, period: int) -> Grid:
    return values // period


def _stripes(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    chosen: Mask = _cell(u, p) % 2 == 0
    return chosen


def _zigzag(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    wave = np.abs(v % (4 * p) - 2 * p)
    chosen: Mask = _cell(u + wave, p) % 2 == 0
    return chosen


def _checker(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    chosen: Mask = (_cell(u, p) + _cell(v, p)) % 2 == 0
    return chosen


def _dots(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    inside: Mask = (u % (2 * p) - p) ** 2 + (v % (2 * p) - p) ** 2 <= (8 * p * p) // 13  # about half of the area
    return inside


def _grid(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    return (u % (2 * p) < 3 * p // 5) | (v % (2 * p) < 3 * p // 5)  # 51 percent of the area


def _bricks(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    shifted = u + (_cell(v, 2 * p) % 2) * 2 * p
    return (v % (2 * p) < p // 2) | (shifted % (4 * p) < p // 2)


def _noise(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    speckles = draws.bytes(64, 64)
    cell = max(p // 3, 1)
    chosen: Mask = speckles[_cell(u, cell) % 64, _cell(v, cell) % 64] < 128
    return chosen


def _weave(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    over = (_cell(u, 2 * p) + _cell(v, 2 * p)) % 2 == 0
    return np.where(over, u % (2 * p) < p, v % (2 * p) < p)


def _cracks(u: Grid, v: Grid, p: int, draws: Draws) -> Mask:
    """Points nearly as far from the nearest seed of a jittered lattice as from the second."""
    jitter = draws.bytes(32, 32, 2).astype(np.int64)
    side = 3 * p
    column, row = _cell(u, side), _cell(v, side)
    squares = []
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            shift = jitter[(column + i) % 32, (row + j) % 32]
            du = (column + i) * side + shift[..., 0] * side // 256 - u
            dv = (row + j) * side + shift[..., 1] * side // 256 - v
            squares.append(du * du + dv * dv)
    near = np.sqrt(np.sort(np.stack(squares), axis=0)[:2].astype(np.float64))  # square roots are exact by IEEE 754
    cracked: Mask = near[1] - near[0] < p * 0.6
    return cracked


TEXTURE_CLASSES: dict[str, Callable[[Grid, Grid, int, Draws], Mask]] = {
    "striped": _stripes,
    "zigzagged": _zigzag,
    "checkered": _checker,
    "dotted": _dots,
    "gridded": _grid,
    "bricked": _bricks,
    "noisy": _noise,
    "woven": _weave,
    "cracked": _cracks,
}


def render_texture(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one row; the first object is the whole picture, its `texture` one of [`TEXTURE_CLASSES`].

    The pattern is the picture, so `photos` are left out.
    """
    draws = key.draws("texture")
    name = draws.choice(tuple(TEXTURE_CLASSES))
    cos, sin, length = draws.choice(TURNS)
    unit = 4 * length  # coordinates are in quarters of a pixel
    period = round(draws.uniform(1 / 24, 1 / 12) * image_size * unit)
    x, y = np.meshgrid(np.arange(image_size), np.arange(image_size))
    u = 4 * (cos * x + sin * y) + draws.integer(0, 64 * unit)
    v = 4 * (cos * y - sin * x) + draws.integer(0, 64 * unit)
    first = draw_color(draws)
    second = draw_color(draws, [first], apart=150)
    chosen = TEXTURE_CLASSES[name](u, v, period, draws)
    pixels = np.where(chosen[..., None], first, second).astype(np.int64)
    amplitude = draws.integer(0, 16)
    pixels += draws.bytes(image_size, image_size, 3).astype(np.int64) % (2 * amplitude + 1) - amplitude
    pixels = np.clip(pixels, 0, 255)
    surface = {
        "size": float(image_size),
        "bbox": [0, 0, image_size, image_size],
        "occlusion": 0.0,
        "texture": name,
    }
    picture = Picture(pixels.astype(np.uint8))
    return {
        "image": picture.image,
        "mask": Image.new("L", (image_size, image_size), 1),
        "objects": [annotate(picture, 1, "surface", **surface)],
    }
