"""What a layer does with its budget: it selects slots of a prompt, and merges the others into them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from meda_cache.compression import CompressionConfig
from meda_cache.functional.merging import merge_and_count
from meda_cache.functional.scores import rank_within_images
from meda_cache.functional.selection import select_tokens
from meda_cache.ops import gather_states

Rotation = Callable[[Tensor, Tensor, bool], Tensor]
"""From keys `(num_heads, seq_len, head_dim)` and positions to keys that are rotated, or rotated back if True."""


def select_slots(scores: Tensor, image_index: Tensor, budget: int, config: CompressionConfig) -> Tensor:
    """Returns the slots that each head keeps, ascending, `(num_heads, budget)`.

    Args:
        scores (`torch.Tensor` of shape `(num_heads, num_slots)`): higher is kept.
        image_index (`torch.Tensor` of the same shape, int64): number of the image of each slot, -1 for text.
        budget (`int`): number of slots to keep.
        config (`CompressionConfig`): options.
    """
    visual_mask = image_index >= 0
    if config.scope == "layer":
        scores = scores.mean(dim=0, keepdim=True).expand_as(scores)
    if config.per_image:
        scores = rank_within_images(scores, image_index)
    if config.select is not None:
        kept = config.select(scores, visual_mask, budget)
        is_in_range = kept.shape == (len(scores), budget) and bool(((kept >= 0) & (kept < scores.shape[1])).all())
        if not is_in_range or not bool((kept.diff(dim=-1) > 0).all()):
            raise ValueError(
                f"Expected `select` to return ascending positions below {scores.shape[1]} of shape "
                f"{(len(scores), budget)}, got others or of shape {tuple(kept.shape)}."
            )
        return kept
    num_sinks = min(config.num_sinks, budget)
    wanted = math.floor(config.recent_fraction * budget) if config.num_recent is None else config.num_recent
    num_recent = min(wanted, budget - num_sinks)
    return select_tokens(
        scores,
        visual_mask,
        num_recent=num_recent,
        num_important=budget - num_sinks - num_recent,
        text_policy=config.text_policy,
        num_sinks=num_sinks,
    )


def merge_slots(
    keys: Tensor, values: Tensor, kept: Tensor, positions: Tensor, config: CompressionConfig, rotation: Rotation | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns keys and values of the kept slots, and how many others were merged into each `(num_heads, num_kept)`."""
    if callable(config.merge):
        merged_keys, merged_values = config.merge(keys, values, kept)
        expected = [(*kept.shape, states.shape[-1]) for states in (keys, values)]
        if [tuple(merged_keys.shape), tuple(merged_values.shape)] != expected:
            raise ValueError(
                f"Expected `merge` to return keys and values of shapes {expected[0]} and {expected[1]}, got "
                f"{tuple(merged_keys.shape)} and {tuple(merged_values.shape)}."
            )
        return merged_keys, merged_values, torch.zeros_like(kept)
    options = {"similarity_threshold": config.similarity_threshold, "backend": config.backend}
    if rotation is None or config.merge == "none":
        return merge_and_count(keys, values, kept, merge=config.merge, **options)  # type: ignore[arg-type]
    plain = rotation(keys, positions, True)
    plain_keys, merged_values, count = merge_and_count(plain, values, kept, merge=config.merge, **options)  # type: ignore[arg-type]
    rotated = rotation(plain_keys, positions.gather(1, kept), False)
    is_merged = (count > 0)[..., None] & (config.merge != "value")
    return torch.where(is_merged, rotated.to(keys.dtype), gather_states(keys, kept)), merged_values, count
