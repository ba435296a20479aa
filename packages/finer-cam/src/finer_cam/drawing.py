"""Colours for maps, and maps over images."""

import torch
from PIL import Image
from torch import Tensor

# Dark violet to pale yellow, rising evenly in lightness.
INFERNO = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)


def colorize(values: Tensor, colormap: str = "inferno") -> Tensor:
    """Returns colours `(H, W, 3)` in [0, 255] for values `(H, W)` in [0, 1]."""
    if colormap != "inferno":
        return _matplotlib_colors(values, colormap)
    anchors = torch.tensor(INFERNO, dtype=torch.float32)
    place = values.clamp(0, 1) * (len(anchors) - 1)
    low = place.long().clamp(max=len(anchors) - 2)
    return torch.lerp(anchors[low], anchors[low + 1], (place - low)[..., None])


def _matplotlib_colors(values: Tensor, colormap: str) -> Tensor:
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            f"`colormap={colormap!r}` needs matplotlib: `pip install 'finer-cam[plots]'`, or use 'inferno'."
        ) from None
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"`colormap` must be 'inferno' or a colormap of matplotlib, got {colormap!r}.")
    return 255 * torch.tensor(matplotlib.colormaps[colormap](values.numpy()))[..., :3].float()


def blend(image: Image.Image, values: Tensor, colormap: str, alpha: float) -> Image.Image:
    """Returns an image under a map `(H, W)` of its size; where the map is NaN the image stays as it is."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1], got {alpha}.")
    values = values.cpu().float()
    pixels = to_tensor(image)
    colors = colorize(values.nan_to_num(0.0), colormap)
    opacity = alpha * (~values.isnan()).float()[..., None]
    return to_image(torch.lerp(pixels, colors, opacity))


def to_tensor(image: Image.Image) -> Tensor:
    """Returns the pixels of an image, `(H, W, 3)`, float32 in [0, 255]."""
    rgb = image.convert("RGB")
    return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).reshape(rgb.height, rgb.width, 3).float()


def to_image(pixels: Tensor) -> Image.Image:
    """Returns an image from pixels `(H, W, 3)` in [0, 255]."""
    return Image.fromarray(pixels.round().clamp(0, 255).to(torch.uint8).numpy())
