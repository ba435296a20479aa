"""Where class prompts look: rows of the last layer's attention, on the grid of patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prompt_cam.backbone import Backbone
from prompt_cam.functional import patch_attention
from prompt_cam.hooks import LayerInput
from prompt_cam.last_attention import AttentionParts

Classes = int | Sequence[int] | torch.Tensor | None


@dataclass(frozen=True)
class Look:
    """What one forward pass leaves behind, from which maps and rankings are made.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes)`): class scores.
        given (`LayerInput`): the input of the last layer, class prompts in front.
        patches (`slice`): which of its tokens are patches.
        grid (`tuple[int, int]`): their rows and columns.
    """

    logits: torch.Tensor
    given: LayerInput
    patches: slice
    grid: tuple[int, int]


def build_look(
    view: Backbone, logits: torch.Tensor, given: LayerInput, pixel_values: Any, spatial_shapes: Any
) -> Look:
    """Returns what a forward pass left behind, after finding the patches among the tokens."""
    num_tokens, num_classes = given.hidden_states.shape[1], logits.shape[1]
    grid = view.find_grid(pixel_values, num_tokens - num_classes, spatial_shapes)
    count = grid[0] * grid[1]
    start = num_classes if spatial_shapes is not None else num_tokens - count
    return Look(logits, given, slice(start, start + count), grid)


def find_rows(classes: Classes, logits: torch.Tensor) -> torch.Tensor:
    """Returns the class prompts that are asked for, `(batch_size, num_rows)`; the predicted ones for `None`."""
    batch_size, num_classes = logits.shape
    if classes is None:
        return logits.argmax(dim=1, keepdim=True)
    rows = torch.as_tensor(classes, device=logits.device)
    if rows.numel() == 0 or rows.is_floating_point() or rows.ndim > 1:
        raise ValueError(f"`classes` must be whole numbers in at most one dimension, got {classes}.")
    if not 0 <= int(rows.min()) <= int(rows.max()) < num_classes:
        raise ValueError(f"`classes` must be from 0 to {num_classes - 1}, got {rows.tolist()}.")
    if isinstance(classes, torch.Tensor) and rows.ndim == 1:
        if len(rows) != batch_size:
            raise ValueError(f"Expected one class for each of {batch_size} images, got {len(rows)}.")
        return rows[:, None]
    return rows.view(1, -1).expand(batch_size, -1)


def compute_maps(view: Backbone, look: Look, rows: torch.Tensor, normalize: str | None) -> torch.Tensor:
    """Returns the maps of some class prompts, `(batch_size, num_rows, num_heads, rows, columns)`."""
    attention = AttentionParts(view.last_layer).attend(look.given, rows)  # (B, heads, rows, tokens)
    maps: torch.Tensor = patch_attention(attention, look.patches, normalize).transpose(1, 2).unflatten(-1, look.grid)
    return maps
