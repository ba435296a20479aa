"""Domains: the same content as another camera, hand or hour would show it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from hf_diorama.draws import Draws
from hf_diorama.worlds.creatures.rendering import measure_parts

Shifted = TypeVar("Shifted", Image.Image, dict[str, Any])


def shift(row: Shifted, domain: str, *, seed: int = 0) -> Shifted:
    """Returns the same content in another domain, a pure function of the image and the seed.

    Args:
        row (`PIL.Image.Image` or `dict[str, Any]`):
            An image, or a row whose `image` is to be shifted. Its annotations stay true: `rotated` also turns
            `part_masks`, measures `parts` anew and changes `pose`; a row of `scenes` loses what no longer holds, the
            colours of its `objects`, its `quality` and the levels `lightness` and `severity`.
        domain (`str`):
            `"photo"` (noise, lens blur, vignetting), `"sketch"` (edges on paper), `"poster"` (flat colours),
            `"infrared"` (channels remapped), `"lowlight"` or `"rotated"` (18 degrees, contrast 0.55).
        seed (`int`, defaults to 0): seed of the noise; use the row's index for noise that differs between rows.

    Returns:
        what was given, shifted: a new `PIL.Image.Image` of mode RGB or a new `dict`.

    Raises:
        TypeError: if `row` is neither an image nor a row with an image.
        ValueError: if the domain is unknown, or if `rotated` would make the boxes of a row untrue.

    Example:

    ```python
    >>> import hf_diorama as dio
    >>> row = dio.render("creatures", index=17)
    >>> dio.shift(row, "sketch")["image"].size == dio.shift(row["image"], "sketch").size
    True

    ```
    """
    if domain not in DOMAINS:
        raise ValueError(f"`domain` must be one of {', '.join(DOMAINS)}, got {domain!r}.")
    if isinstance(row, Image.Image):
        return _shift_image(row, domain, seed)
    if not isinstance(row, Mapping) or not isinstance(row.get("image"), Image.Image):
        raise TypeError(f"`row` must be a PIL image or a row whose `image` is one, got {type(row).__name__}.")
    shifted = {**row, "image": _shift_image(row["image"], domain, seed)}
    if domain == "rotated" and "part_masks" in row:
        labels = row["part_masks"].rotate(_ANGLE)
        pose = {**row["pose"], "rotation": row["pose"]["rotation"] - _ANGLE}
        shifted.update(part_masks=labels, parts=measure_parts(np.asarray(labels)), pose=pose)
    elif domain == "rotated" and "objects" in row:
        raise ValueError("'rotated' would make the boxes of this row untrue; shift row['image'] alone.")
    elif "objects" in row:
        shifted.update(_forget_looks(row))
    return shifted


def _forget_looks(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of `scenes` that speak of colours and of the quality of the image, without that."""
    absent = dict.fromkeys(("color_srgb", "color_lab", "color_name"))
    columns = {
        "objects": [{**item, **absent} for item in row["objects"]],
        "quality": [],
        "levels": [level for level in row.get("levels", []) if level["name"] not in ("lightness", "severity")],
    }
    return {name: value for name, value in columns.items() if name in row}


def _shift_image(image: Image.Image, domain: str, seed: int) -> Image.Image:
    return DOMAINS[domain](image.convert("RGB"), Draws("domain", domain, seed))


def _photo(image: Image.Image, draws: Draws) -> Image.Image:
    """Returns the image through a soft lens that darkens the corners, with sensor noise."""
    blurred = image.filter(ImageFilter.GaussianBlur(0.7 * max(image.size) / 64))
    width, height = image.size
    x = np.arange(width, dtype=np.int64) * 2 - (width - 1)
    y = np.arange(height, dtype=np.int64) * 2 - (height - 1)
    # 1024 in the centre, 563 (45 percent off) in the corners, falling with the square of the radius.
    gain = 1024 - 461 * (x[None] ** 2 * height**2 + y[:, None] ** 2 * width**2) // (2 * width**2 * height**2)
    return _noisy(np.asarray(blurred) * gain[:, :, None] >> 10, draws, 28)


def _sketch(image: Image.Image, draws: Draws) -> Image.Image:
    """Returns pencil edges on warm paper."""
    gray = np.asarray(image.filter(ImageFilter.GaussianBlur(0.4 * max(image.size) / 64)).convert("L")).astype(np.int64)
    padded = np.pad(gray, 1, mode="edge")
    edges = abs(padded[1:-1, 2:] - padded[1:-1, :-2]) + abs(padded[2:, 1:-1] - padded[:-2, 1:-1])
    ink = np.minimum(edges * 3, 215)[:, :, None]
    return _noisy(np.array([246, 240, 226]) - ink, draws, 14)


def _poster(image: Image.Image, draws: Draws) -> Image.Image:
    """Returns flat patches of few colours."""
    del draws
    pixels = np.asarray(image.filter(ImageFilter.MedianFilter(3))).astype(np.int64)
    return Image.fromarray(((pixels * 4 >> 8) * 85).astype(np.uint8))


def _infrared(image: Image.Image, draws: Draws) -> Image.Image:
    """Returns false colours as of infrared film: what is green shows red, what is red shows green."""
    del draws
    red, green, blue = image.split()
    return Image.merge("RGB", (green, ImageChops.add(red, blue, 2), blue))


def _lowlight(image: Image.Image, draws: Draws) -> Image.Image:
    """Returns the image at night: dark, bluish, grainy."""
    return _noisy(np.asarray(image) * np.array([56, 64, 84]) >> 8, draws, 24)


_ANGLE = 18


def _rotated(image: Image.Image, draws: Draws) -> Image.Image:
    """Returns the image turned by 18 degrees counter-clockwise, with 0.55 of its contrast, on its mean colour."""
    del draws
    pixels = np.asarray(image).astype(np.int64)
    mean = pixels.reshape(-1, 3).sum(0) // (pixels.shape[0] * pixels.shape[1])
    faded = Image.fromarray((mean + (pixels - mean) * 55 // 100).astype(np.uint8))
    return faded.rotate(_ANGLE, Image.Resampling.BILINEAR, fillcolor=tuple(mean.tolist()))


def _noisy(pixels: NDArray[np.int64], draws: Draws, width: int) -> Image.Image:
    """Returns the pixels with triangular noise within `width` of zero, different for each pixel and channel."""
    first, second = draws.bytes(2, *pixels.shape).astype(np.int64)
    return Image.fromarray(np.clip(pixels + (first - second) * width // 256, 0, 255).astype(np.uint8))


DOMAINS: Mapping[str, Callable[[Image.Image, Draws], Image.Image]] = {
    "photo": _photo,
    "sketch": _sketch,
    "poster": _poster,
    "infrared": _infrared,
    "lowlight": _lowlight,
    "rotated": _rotated,
}
