"""Topic `quality`: views of one scene that are more or less blurred, noisy, compressed or underexposed.

Integers throughout, so that bytes are equal on every machine: blur is repeated binomial smoothing, compression rounds
the coefficients of 8 x 8 cosine transforms as JPEG does, without a codec.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.scenes.objects import render_objects

SEVERITIES = 4
VIEWS = 2 * SEVERITIES
"""Views of a group: two crops of each severity."""
DEFECTS = ("blur", "noise", "compression", "exposure")

_Values = npt.NDArray[np.int64]
# Annex K of the JPEG standard (ITU-T T.81), luminance.
_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_BITS = 11
_COSINES = np.array(
    [
        [
            round(math.sqrt((1 if u == 0 else 2) / 8) * math.cos((2 * x + 1) * u * math.pi / 16) * 2**_BITS)
            for x in range(8)
        ]
        for u in range(8)
    ]
)


def _smooth(pixels: _Values, passes: int) -> _Values:
    """Returns the pixels after so many passes of (1, 2, 1) / 4 along both axes: sigma is the root of half of them."""
    for _ in range(passes):
        for axis in (0, 1):
            pad = [(1, 1) if axis == other else (0, 0) for other in range(3)]
            padded = np.pad(pixels, pad, mode="edge").swapaxes(0, axis)
            smoothed: _Values = ((padded[:-2] + 2 * padded[1:-1] + padded[2:] + 2) >> 2).swapaxes(0, axis)
            pixels = smoothed
    return pixels


def _compress(pixels: _Values, quality: int) -> _Values:
    """Returns the pixels after rounding their cosine coefficients to multiples of the JPEG table of that quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.clip((_TABLE * scale + 50) // 100, 1, 255)
    height, width, _ = pixels.shape
    padded = np.pad(pixels, [(0, -height % 8), (0, -width % 8), (0, 0)], mode="edge") - 128
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8, 3).transpose(0, 2, 4, 1, 3)
    half = 1 << (2 * _BITS - 1)
    coefficients = (_COSINES @ blocks @ _COSINES.T + half) >> (2 * _BITS)
    rounded = (2 * coefficients + table) // (2 * table) * table
    back = (_COSINES.T @ rounded @ _COSINES + half) >> (2 * _BITS)
    restored: _Values = back.transpose(0, 3, 1, 4, 2).reshape(padded.shape) + 128
    return restored[:height, :width]


def _degrade(pixels: _Values, defect: str, severity: int, draws: Draws) -> tuple[_Values, dict[str, float]]:
    """Returns the pixels with the defect, and the entry of `quality`; severity 0 is clean."""
    entry = {"blur_sigma": 0.0, "noise_sigma": 0.0, "jpeg_quality": 100.0, "exposure": 0.0}
    if severity == 0:
        return pixels, entry
    if defect == "blur":
        passes = (1, 4, 12)[severity - 1] * max(1, len(pixels) // 128) ** 2
        return _smooth(pixels, passes), {**entry, "blur_sigma": math.sqrt(passes / 2)}
    if defect == "noise":
        # The sum of four uniform bytes around their mean has standard deviation 2 * 73.9.
        sigma = (8, 20, 45)[severity - 1]
        noise = draws.bytes(*pixels.shape, 4).astype(np.int64).sum(axis=-1) - 510
        return pixels + noise * sigma // 148, {**entry, "noise_sigma": float(sigma)}
    if defect == "compression":
        quality = (35, 12, 4)[severity - 1]
        return _compress(pixels, quality), {**entry, "jpeg_quality": float(quality)}
    stops = (1, 2, 3)[severity - 1]
    return pixels >> stops, {**entry, "exposure": -float(stops)}


def render_quality(
    key: RowKey, image_size: int, *, photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> dict[str, Any]:
    """Returns one view; rows `8 g` to `8 g + 7` are views of scene `g` with one kind of defect, and share `group_id`.

    Each view is a crop of its own, so that equally good views are not equal pixels. `quality` holds `blur_sigma` in
    pixels, `noise_sigma` in steps of 8-bit, `jpeg_quality` (100 without compression) and `exposure` in stops; `states`
    the kind of the defect, `levels` its `severity`, 0 (clean) to 3.
    """
    group, member = divmod(key.index, VIEWS)
    shared = dataclasses.replace(key, index=group)
    draws = shared.draws("quality group")
    defect = draws.choice(DEFECTS)
    severity = draws.sample([i % SEVERITIES for i in range(VIEWS)], VIEWS)[member]
    margin = image_size // 8
    scene = render_objects(
        dataclasses.replace(shared, world=f"{key.world} quality"),
        image_size + margin,
        num_objects=(3, 7),
        photos=photos,
        photo_ratio=photo_ratio,
    )
    own = key.draws("quality view")
    x, y = own.integer(0, margin + 1), own.integer(0, margin + 1)
    crop = (x, y, x + image_size, y + image_size)
    pixels = np.asarray(scene["image"].crop(crop)).astype(np.int64)
    degraded, entry = _degrade(pixels, defect, severity, own)
    return {
        "image": Image.fromarray(np.clip(degraded, 0, 255).astype(np.uint8)),
        "mask": scene["mask"].crop(crop),
        "scene_type": scene["scene_type"],
        "states": [defect],
        "quality": [entry],
        "levels": [{"name": "severity", "value": float(severity)}],
        "group_id": f"{key.split}-{key.seed}-quality-{group}",
    }
