"""Undoing what an image processor did to the geometry of an image: resize, centre crop, pad."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Steps:
    """What an image processor does to sizes, in pixels; `None` for a step that it leaves out."""

    resized: tuple[int, int]
    cropped: tuple[int, int] | None
    padded: tuple[int, int] | None

    @property
    def seen(self) -> tuple[int, int]:
        """Size of the image before it is padded."""
        return self.cropped or self.resized


def read_steps(processor: Any, image_size: tuple[int, int], map_size: tuple[int, int]) -> Steps:
    """Returns the steps for an image of `(width, height)` whose processed form has `map_size` `(height, width)`.

    Raises:
        ValueError: if they do not lead to `map_size`.
    """
    width, height = image_size
    processor = getattr(processor, "image_processor", processor)
    if processor is None:
        if (height, width) != map_size:
            raise ValueError(
                f"maps are {map_size[0]} x {map_size[1]} and the image is {height} x {width} pixels; give "
                "`FinerCAM(..., processor=processor)`, so that resize and crop can be undone, or images of that size."
            )
        return Steps((height, width), None, None)
    if hasattr(processor, "max_num_patches"):  # SigLIP2 chooses the size by the image
        return Steps(map_size, None, None)
    resized, crops = (height, width), bool(getattr(processor, "do_center_crop", False))
    cropped = _pair(processor.crop_size) if crops else None
    if getattr(processor, "do_resize", True):
        size = _items(processor.size)
        ratio = getattr(processor, "crop_pct", None)
        if ratio and "shortest_edge" in size and size["shortest_edge"] < 384:  # ConvNeXt: enlarge, then crop
            cropped = (size["shortest_edge"],) * 2
            resized = _resize((height, width), {"shortest_edge": int(size["shortest_edge"] / ratio)})
        elif ratio and "shortest_edge" in size:
            resized = (size["shortest_edge"],) * 2
        else:
            resized = _resize((height, width), size)
    padded = map_size if getattr(processor, "do_pad", False) else None
    steps = Steps(resized, cropped, padded)
    if (padded or steps.seen) != map_size:
        raise ValueError(
            f"the processor makes {steps.seen[0]} x {steps.seen[1]} pixels of an image of {height} x {width}, but the "
            f"maps have {map_size[0]} x {map_size[1]}; give the processor that made `pixel_values`."
        )
    return steps


def _items(size: Any) -> dict[str, int]:
    """Returns the entries of a processor's size that are set."""
    entries = size if isinstance(size, dict) else vars(size) if hasattr(size, "__dict__") else dict(size)
    return {name: int(value) for name, value in entries.items() if value is not None}


def _pair(size: Any) -> tuple[int, int]:
    entries = _items(size)
    if "shortest_edge" in entries:
        return (entries["shortest_edge"],) * 2
    return entries["height"], entries["width"]


def _resize(size: tuple[int, int], target: dict[str, int]) -> tuple[int, int]:
    """Returns height and width after a resize to `height` and `width`, or of the shortest edge at its aspect ratio."""
    if "height" in target and "width" in target:
        return target["height"], target["width"]
    if "shortest_edge" not in target:
        raise ValueError(f"expected a processor with `size` of height and width or shortest_edge, got {target}.")
    height, width = size
    shortest, longest = target["shortest_edge"], target.get("longest_edge")
    if longest is not None and max(size) / min(size) * shortest > longest:
        shortest = round(longest * min(size) / max(size))
    if height <= width:
        return shortest, int(shortest * width / height)
    return int(shortest * height / width), shortest


def to_original(maps: Tensor, image_size: tuple[int, int], processor: Any) -> Tensor:
    """Returns maps in pixels of the original image; NaN where the processor cut it off.

    Args:
        maps: `(..., H, W)` in pixels of the processed image.
        image_size: width and height of the original image.
        processor: image processor, or a processor that holds one; `None` if there was none.

    Returns:
        `(..., height, width)`, float32
    """
    width, height = image_size
    steps = read_steps(processor, image_size, (maps.shape[-2], maps.shape[-1]))
    inner = maps[..., : steps.seen[0], : steps.seen[1]].float().cpu()  # padding is at the bottom and the right
    canvas = _place(inner, steps.resized) if steps.cropped else inner
    rows = _sample_positions(height)
    columns = _sample_positions(width)
    flat = canvas.reshape(-1, 1, *canvas.shape[-2:])
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None].expand(len(flat), -1, -1, -1)
    known = (~flat.isnan()).float()
    sample = partial(F.grid_sample, grid=grid, padding_mode="border", align_corners=False)
    is_known = sample(known, mode="nearest") > 0.5
    share = sample(known, mode="bilinear")  # below 1 next to what was cut off
    values = sample(flat.nan_to_num(0.0), mode="bilinear") / share.clamp(min=1e-6)
    return values.masked_fill(~is_known, torch.nan).reshape(*canvas.shape[:-2], height, width)


def _sample_positions(count: int) -> Tensor:
    """Returns for the centres of `count` pixels their places in [-1, 1] on an axis of the same length."""
    return (torch.arange(count) + 0.5) / count * 2 - 1


def _place(cropped: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a canvas of NaN with the centre crop at its place; a crop larger than the canvas had been padded."""
    height, width = size
    crop_height, crop_width = cropped.shape[-2:]
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    canvas = cropped.new_full((*cropped.shape[:-2], height, width), torch.nan)
    from_top, from_left = max(0, -top), max(0, -left)
    part = cropped[..., from_top : from_top + height, from_left : from_left + width]
    top, left = max(0, top), max(0, left)
    canvas[..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
    return canvas
