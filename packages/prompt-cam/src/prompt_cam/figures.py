"""Figures: heads over the image that a person sees, not over the crop that the model sees. Needs the extra `plots`."""

from dataclasses import dataclass
from typing import Any

import torch

from prompt_cam.functional import smooth_maps

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class HeadRow:
    """One row of a figure: an image, and heads of one class over it.

    Args:
        image (`PIL.Image.Image`): the original image.
        title (`str`): what stands over it.
        maps (`torch.Tensor` of shape `(num_heads, rows, columns)`): the heads to show, in order.
        names (`list[str]`): what stands over each of them.
    """

    image: Any
    title: str
    maps: torch.Tensor
    names: list[str]


def find_visible_box(processor: Any, size: tuple[int, int]) -> Box:
    """Returns the part of an image that the model sees, undoing resize and centre crop of its image processor.

    Args:
        processor (`BaseImageProcessor`):
            With `size`, `crop_size`, `do_resize` and `do_center_crop`, as far as it has them.
        size (`tuple[int, int]`): width and height of the original image in pixels.

    Returns:
        `tuple[float, float, float, float]`: left, top, right, bottom in pixels of the original, half-open; beyond the
        image where the crop pads it.

    Example:

    ```python
    >>> from transformers import CLIPImageProcessorPil
    >>> from prompt_cam import find_visible_box
    >>> processor = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    >>> find_visible_box(processor, (448, 224))  # a wide image loses a quarter on each side
    (112.0, 0.0, 336.0, 224.0)

    ```
    """
    width, height = size
    columns, rows = float(width), float(height)
    target = dict(processor.size or {}) if getattr(processor, "do_resize", False) else {}
    if target.get("shortest_edge"):
        factor = target["shortest_edge"] / min(width, height)
        columns, rows = width * factor, height * factor
    elif target.get("height"):
        columns, rows = float(target["width"]), float(target["height"])
    if not getattr(processor, "do_center_crop", False):
        return 0.0, 0.0, float(width), float(height)
    crop = processor.crop_size
    x_scale, y_scale = width / columns, height / rows
    left, top = (columns - crop["width"]) / 2, (rows - crop["height"]) / 2
    return left * x_scale, top * y_scale, (left + crop["width"]) * x_scale, (top + crop["height"]) * y_scale


def draw_heads(rows: list[HeadRow], processor: Any) -> Any:
    """Returns a figure with the original images and the heads over them (jet, half transparent, as published).

    Args:
        rows (`list[HeadRow]`): what to show.
        processor (`BaseImageProcessor`): the one that made the pixel values.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "prompt-cam[plots]".') from error
    num_columns = 1 + max(len(row.maps) for row in rows)
    figure = Figure(figsize=(1.9 * num_columns, 2.2 * len(rows)), layout="constrained")
    for row, cells in zip(rows, figure.subplots(len(rows), num_columns, squeeze=False), strict=True):
        left, top, right, bottom = find_visible_box(processor, row.image.size)
        size = (max(1, round(bottom - top)), max(1, round(right - left)))
        for cell in cells:
            cell.set_axis_off()
        image = row.image.convert("RGB")  # grey ones would get a colour map
        cells[0].imshow(image)
        cells[0].set_title(row.title, fontsize=8)
        for cell, one, name in zip(cells[1:], smooth_maps(row.maps[None], size)[0], row.names, strict=False):
            cell.imshow(image)
            cell.imshow(one.cpu().numpy(), cmap="jet", alpha=0.5, vmin=0, vmax=1, extent=(left, right, bottom, top))
            cell.set_xlim(0, image.width)
            cell.set_ylim(image.height, 0)
            cell.set_title(name, fontsize=8)
    return figure
