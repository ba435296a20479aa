"""Backgrounds of a scene and textures of an object, in integer arithmetic."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hf_diorama.draws import Draws
from hf_diorama.worlds.scenes.palette import RGB, draw_background_color, shade_of

Pixels = npt.NDArray[np.uint8]


def _ramp(size: int, draws: Draws) -> npt.NDArray[np.int64]:
    """Distances along a random direction on the pixel grid, from 0 up."""
    dx, dy = draws.choice([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2)])
    ramp: npt.NDArray[np.int64] = dx * np.arange(size)[None, :] + dy * np.arange(size)[:, None]
    return ramp - int(ramp.min())


def _mix(a: RGB, b: RGB, share_of_b: npt.NDArray[np.int64], whole: int) -> Pixels:
    share = share_of_b[..., None]
    return ((np.asarray(a) * (whole - share) + np.asarray(b) * share) // whole).astype(np.uint8)


def _plain(size: int, draws: Draws, avoid: list[RGB]) -> Pixels:
    return np.full((size, size, 3), draw_background_color(draws, avoid), np.uint8)


def _gradient(size: int, draws: Draws, avoid: list[RGB]) -> Pixels:
    a, b = draw_background_color(draws, avoid), draw_background_color(draws, avoid)
    ramp = _ramp(size, draws)
    if draws.chance(0.5):
        ramp = ramp.max() - ramp
    return _mix(a, b, ramp, int(ramp.max()))


def _stripes(size: int, draws: Draws, avoid: list[RGB]) -> Pixels:
    a = draw_background_color(draws, avoid)
    width = draws.integer(size // 16, size // 5)
    return _mix(a, shade_of(a), _ramp(size, draws) // width % 2, 2)


def _noise(size: int, draws: Draws, avoid: list[RGB]) -> Pixels:
    color = np.asarray(draw_background_color(draws, avoid))
    cells = draws.integer(4, 17)
    noise = Image.fromarray(draws.bytes(cells, cells, 3)).resize((size, size), Image.Resampling.BICUBIC)
    return ((3 * color + np.asarray(noise, dtype=np.int64)) // 4).astype(np.uint8)


BACKGROUNDS: dict[str, Callable[[int, Draws, list[RGB]], Pixels]] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "noise": _noise,
}
TEXTURES = ("plain", "striped", "dotted", "checked")


def draw_background(
    size: int, draws: Draws, avoid: list[RGB], photos: Sequence[Any] | None = None, photo_ratio: float = 0.5
) -> tuple[str, Pixels]:
    """Returns the scene type and a background whose colours keep away from those of the objects, if it is rendered.

    Args:
        size (`int`): height and width in pixels.
        draws (`Draws`): where the random choices come from.
        avoid (`list` of sRGB triples): colours of the objects.
        photos (sequence of `PIL.Image.Image` or of rows with an `image`, *optional*): photos to draw from.
        photo_ratio (`float`, defaults to 0.5): probability of a photo, where photos are given.
    """
    if photos is not None and draws.chance(photo_ratio):
        return "photo", np.asarray(fit_photo(photos[draws.integer(0, len(photos))], size))
    scene_type = draws.choice(tuple(BACKGROUNDS))
    return scene_type, BACKGROUNDS[scene_type](size, draws, avoid)


def fit_photo(photo: Any, size: int) -> Image.Image:
    """Returns the middle of a photo, or of the `image` of a row, as an RGB square of `size` pixels."""
    image = photo.get("image") if isinstance(photo, dict) else photo
    if not isinstance(image, Image.Image):
        found = f"a row with {', '.join(photo)}" if isinstance(photo, dict) else type(photo).__name__
        raise ValueError(f"`photos` must hold PIL images, or rows with an `image`, got {found}.")
    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


def draw_texture(texture: str, side: int, color: RGB, period: int, draws: Draws) -> Image.Image:
    """Returns a square of `side` pixels in the colour, with the texture's ink on at most half of it."""
    if texture == "plain":
        return Image.new("RGB", (side, side), color)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    if texture == "striped":
        ink = _ramp(side, draws) % (2 * period) < period
    elif texture == "checked":
        ink = (x // period + y // period) % 2 == 0
    else:  # dotted: discs on a square lattice of two periods
        ink = (x % (2 * period) - period) ** 2 + (y % (2 * period) - period) ** 2 <= period * period // 2
    return Image.fromarray(np.where(ink[..., None], np.asarray(shade_of(color)), np.asarray(color)).astype(np.uint8))
