"""Score-CAM's pass: the model on the image masked by each channel, without gradients."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def choose_channels(activations: Tensor, top_channels: int | None) -> Tensor:
    """Returns the channels of largest variance over the grid, `(B, K)`, or all of them; ties go to the lower index."""
    num_channels = activations.shape[1]
    if top_channels is None or top_channels >= num_channels:
        return torch.arange(num_channels, device=activations.device).expand(len(activations), -1)
    variance = activations.flatten(2).var(dim=2, correction=0)
    return variance.sort(dim=1, descending=True, stable=True).indices[:, :top_channels].sort(dim=1).values


def channel_masks(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns activations `(B, D, h, w)` resized to pixels (corners aligned) and each brought to [0, 1]."""
    masks = F.interpolate(activations, size=size, mode="bilinear", align_corners=True)
    low, high = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
    return (masks - low) / (high - low + 1e-8)


def channel_logits(
    forward: Callable[[Tensor, Tensor], Tensor],
    pixel_values: Tensor,
    activations: Tensor,
    channels: Tensor,
    batch_size: int,
) -> Tensor:
    """Returns the logits of each image masked by each channel, `(B, K, C)`.

    Args:
        forward: gives logits for masked images and the indices of the images they come from.
        pixel_values: `(B, 3, H, W)`.
        activations: `(B, D, h, w)`.
        channels: `(B, K)`.
        batch_size: masked images in one forward.
    """
    height, width = pixel_values.shape[2:]
    rows = torch.arange(len(pixel_values), device=pixel_values.device)[:, None].expand_as(channels).flatten()
    parts = []
    for start in range(0, len(rows), batch_size):
        row, channel = rows[start : start + batch_size], channels.flatten()[start : start + batch_size]
        masks = channel_masks(activations[row, channel][:, None], (height, width))
        parts.append(forward(pixel_values[row] * masks.to(pixel_values), row).float())
    return torch.cat(parts).reshape(*channels.shape, -1)
