"""Weak and strong views of images, drawn by seed, epoch, image and view alone (RandAugment, arXiv 1909.13719)."""

import hashlib
from collections.abc import Callable
from math import cos, pi, sin
from typing import Any, Literal, get_args

import torch
from PIL import Image

View = Literal["none", "weak", "strong"]
NUM_OPS, MAGNITUDE = 3, 5  # of the strong view, as in V-PET's released code; magnitudes run from 0 to 10
GREY = (0.299, 0.587, 0.114)  # of red, green and blue in a grey value, as in ITU-R 601-2


def to_tensor(image: Any) -> torch.Tensor:
    """An image as uint8 `(3, height, width)`; grey ones are repeated.

    Args:
        image: a PIL image, or integers from 0 to 255: an array, tensor or nested list `(height, width)`, `(height,
            width, channels)` or `(channels, height, width)` with one or three channels.

    Example:

    ```python
    >>> to_tensor(torch.zeros(4, 5, dtype=torch.uint8)).shape
    torch.Size([3, 4, 5])

    ```
    """
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
    pixels = torch.as_tensor(image)
    if pixels.is_floating_point() or (pixels.numel() and not 0 <= int(pixels.min()) <= int(pixels.max()) <= 255):
        raise TypeError(
            f"expected a PIL image or integers from 0 to 255, got {pixels.dtype} of shape {tuple(pixels.shape)}"
        )
    pixels = pixels.to(torch.uint8)
    pixels = pixels[None] if pixels.dim() == 2 else pixels
    if pixels.dim() == 3 and pixels.shape[0] not in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"expected an image of one or three channels, got shape {tuple(torch.as_tensor(image).shape)}"
        )
    return pixels.expand(3, -1, -1).contiguous()


def augment(image: torch.Tensor, view: View, key: tuple[object, ...]) -> torch.Tensor:
    """A view of an image: `"weak"` is a random mirroring, `"strong"` three random operations of RandAugment after it.

    Args:
        image: uint8 `(3, height, width)`.
        view: `"none"` returns the image as it is.
        key: what the random choices depend on, such as `(seed, epoch, id)`; nothing else does.

    Returns:
        uint8 `(3, height, width)`.

    Example:

    ```python
    >>> image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    >>> torch.equal(augment(image, "strong", (0, 1, "a")), augment(image, "strong", (0, 1, "a")))
    True

    ```
    """
    if view not in get_args(View):
        raise ValueError(f"view must be one of {', '.join(get_args(View))}, got {view!r}")
    if view == "none":
        return image
    generator = _draw(view, key)
    if torch.rand(1, generator=generator) < 0.5:
        image = image.flip(-1)
    if view == "weak":
        return image
    for _ in range(NUM_OPS):
        operation = list(OPERATIONS.values())[int(torch.randint(len(OPERATIONS), (1,), generator=generator))]
        sign = 1 if torch.rand(1, generator=generator) < 0.5 else -1
        image = operation(image, sign * MAGNITUDE / 10)
    return image


def name_view(view: View, key: tuple[object, ...]) -> tuple[object, ...]:
    """What `augment` makes of an image, named so that equal views have equal names: there are two weak ones.

    Args:
        view, key: as for `augment`.

    Example:

    ```python
    >>> {name_view("weak", (0, epoch, "a")) for epoch in range(20)} == {("none",), ("mirrored",)}
    True

    ```
    """
    if view == "weak":
        return ("mirrored",) if torch.rand(1, generator=_draw(view, key)) < 0.5 else ("none",)
    return (view, *key) if view == "strong" else (view,)


def _draw(view: View, key: tuple[object, ...]) -> torch.Generator:
    """The random numbers of a view."""
    digest = hashlib.sha256(repr((*key, view)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _clip(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.clamp(0, 255).to(torch.uint8)


def _blend(low: torch.Tensor, image: torch.Tensor, factor: float) -> torch.Tensor:
    """low at factor 0, the image at 1, and beyond."""
    return _clip(low + factor * (image.float() - low))


def _grey(image: torch.Tensor) -> torch.Tensor:
    return torch.einsum("c,chw->hw", torch.tensor(GREY), image.float())


def autocontrast(image: torch.Tensor, level: float) -> torch.Tensor:
    """Each channel stretched to 0..255; a constant one stays."""
    pixels = image.float()
    low, high = pixels.amin(dim=(1, 2), keepdim=True), pixels.amax(dim=(1, 2), keepdim=True)
    stretched = (pixels - low) * 255 / (high - low).clamp_min(1)
    return torch.where(high > low, stretched, pixels).clamp(0, 255).to(torch.uint8)


def brightness(image: torch.Tensor, level: float) -> torch.Tensor:
    """Towards or away from black."""
    return _blend(torch.zeros(1), image, 1 + 0.9 * level)


def color(image: torch.Tensor, level: float) -> torch.Tensor:
    """Towards or away from grey values."""
    return _blend(_grey(image), image, 1 + 0.9 * level)


def contrast(image: torch.Tensor, level: float) -> torch.Tensor:
    """Towards or away from the mean grey."""
    return _blend(_grey(image).mean().round(), image, 1 + 0.9 * level)


def sharpness(image: torch.Tensor, level: float) -> torch.Tensor:
    """Towards or away from a smoothed image; the border stays."""
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = image.float().clone()
    if min(image.shape[1:]) >= 3:
        inner = torch.nn.functional.conv2d(image.float()[:, None], kernel[None, None])[:, 0]
        smooth[:, 1:-1, 1:-1] = inner.round()
    return _blend(smooth, image, 1 + 0.9 * level)


def equalize(image: torch.Tensor, level: float) -> torch.Tensor:
    """Each channel with an even histogram."""
    return torch.stack([_equalize_channel(channel) for channel in image])


def _equalize_channel(channel: torch.Tensor) -> torch.Tensor:
    histogram = torch.bincount(channel.flatten().long(), minlength=256)
    last = histogram[histogram > 0][-1]
    step = int((histogram.sum() - last) // 255)
    if step == 0:
        return channel
    before = histogram.cumsum(0) - histogram
    table = ((before + step // 2) // step).clamp(0, 255).to(torch.uint8)
    equalized: torch.Tensor = table[channel.long()]
    return equalized


def identity(image: torch.Tensor, level: float) -> torch.Tensor:
    """The image."""
    return image


def posterize(image: torch.Tensor, level: float) -> torch.Tensor:
    """Fewer bits for each channel: 8 down to 4."""
    bits = 8 - round(4 * abs(level))
    kept: torch.Tensor = image & (256 - 2 ** (8 - bits))
    return kept


def solarize(image: torch.Tensor, level: float) -> torch.Tensor:
    """Bright pixels inverted."""
    threshold = round(256 * (1 - abs(level)))
    return torch.where(image.int() < threshold, image, 255 - image)


def _affine(image: torch.Tensor, matrix: list[list[float]]) -> torch.Tensor:
    """Nearest pixels under a map of output to input, in units of half an image, from its centre; black outside."""
    height, width = image.shape[1:]
    grid = torch.nn.functional.affine_grid(torch.tensor([matrix]), [1, 3, height, width], align_corners=False)
    moved = torch.nn.functional.grid_sample(image.float()[None], grid, mode="nearest", align_corners=False)
    return moved[0].to(torch.uint8)


def rotate(image: torch.Tensor, level: float) -> torch.Tensor:
    """Turned by up to 30 degrees."""
    angle = level * 30 * pi / 180
    ratio = image.shape[1] / image.shape[2]
    return _affine(image, [[cos(angle), -sin(angle) * ratio, 0], [sin(angle) / ratio, cos(angle), 0]])


def shear_x(image: torch.Tensor, level: float) -> torch.Tensor:
    """Sheared along the rows by up to 0.3."""
    return _affine(image, [[1, 0.3 * level * image.shape[1] / image.shape[2], 0], [0, 1, 0]])


def shear_y(image: torch.Tensor, level: float) -> torch.Tensor:
    """Sheared along the columns by up to 0.3."""
    return _affine(image, [[1, 0, 0], [0.3 * level * image.shape[2] / image.shape[1], 1, 0]])


def translate_x(image: torch.Tensor, level: float) -> torch.Tensor:
    """Moved along the rows by up to 0.3 of the width."""
    return _affine(image, [[1, 0, 0.6 * level], [0, 1, 0]])


def translate_y(image: torch.Tensor, level: float) -> torch.Tensor:
    """Moved along the columns by up to 0.3 of the height."""
    return _affine(image, [[1, 0, 0], [0, 1, 0.6 * level]])


OPERATIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    function.__name__: function
    for function in (
        autocontrast,
        brightness,
        color,
        contrast,
        equalize,
        identity,
        posterize,
        rotate,
        sharpness,
        shear_x,
        shear_y,
        solarize,
        translate_x,
        translate_y,
    )
}
