"""Topic `color`: which colour the marked region has, drawn evenly from the sRGB part of CIELAB."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.glyphs import draw_color, mark
from hf_diorama.worlds.scenes.palette import RGB
from hf_diorama.worlds.scenes.picture import Picture, annotate, color_entry
from hf_diorama.worlds.scenes.surfaces import draw_background

NOISE = 12
"""Largest deviation of a pixel's channel from the region's colour."""


def draw_lab_color(draws: Draws) -> RGB:
    """Returns an 8-bit sRGB colour drawn evenly, by volume in CIELAB, from the colours that a screen can show."""
    while True:
        lightness, a, b = draws.uniform(0, 100), draws.uniform(-100, 100), draws.uniform(-110, 100)
        rgb = _lab_to_srgb(lightness, a, b)
        if rgb is not None:
            return rgb


def _lab_to_srgb(lightness: float, a: float, b: float) -> RGB | None:
    """Returns the nearest 8-bit colour, or None outside of sRGB; the inverse of [`palette.srgb_to_lab`]."""
    fy = (lightness + 16) / 116
    f = (fy + a / 500, fy, fy - b / 200)
    x, y, z = (
        white * (value**3 if value > 6 / 29 else 3 * (6 / 29) ** 2 * (value - 4 / 29))
        for value, white in zip(f, (0.95047, 1.0, 1.08883), strict=True)
    )
    linear = (
        3.2404542 * x - 1.5371385 * y - 0.4985314 * z,
        -0.9692660 * x + 1.8760108 * y + 0.0415560 * z,
        0.0556434 * x - 0.2040259 * y + 1.0572252 * z,
    )
    if min(linear) < 0 or max(linear) > 1:
        return None
    red, green, blue = (round(255 * (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055)) for c in linear)
    return red, green, blue


def render_color(
    key: RowKey,
    image_size: int,
    *,
    photos: Sequence[Any] | None = None,
    photo_ratio: float = 0.5,
    boxes: bool = True,
) -> dict[str, Any]:
    """Returns one row; `color_srgb` of the first object is the rounded mean of the pixels in its `bbox` (red box)."""
    draws = key.draws("color")
    rgb = draw_lab_color(draws)
    # The background keeps away from colours of its own drawing, so that it tells nothing about the region's.
    decoys = [draw_color(draws) for _ in range(2)]
    scene_type, background = draw_background(image_size, key.draws("color background"), decoys, photos, photo_ratio)
    picture = Picture(background)
    width, height = (round(draws.uniform(0.22, 0.6) * image_size) for _ in range(2))
    margin = 2 + max(2, image_size // 48)
    left = draws.integer(margin, image_size - margin - width + 1)
    top = draws.integer(margin, image_size - margin - height + 1)
    amplitude = draws.integer(0, NOISE + 1)
    noise = draws.bytes(height, width, 3).astype(np.int64) % (2 * amplitude + 1) - amplitude
    region = np.clip(np.asarray(rgb) + noise, 0, 255).astype(np.uint8)
    picture.paste(Image.fromarray(region), Image.new("L", (width, height), 255), (left, top), label=1)
    red, green, blue = (round(float(channel)) for channel in region.reshape(-1, 3).mean(axis=0))
    thing = annotate(
        picture, 1, "region", texture="noise" if amplitude else "plain", **color_entry((red, green, blue))
    )
    if boxes:
        mark(picture, thing["bbox"])
    return {
        "image": picture.image,
        "mask": Image.fromarray(picture.labels),
        "scene_type": scene_type,
        "objects": [thing],
    }
