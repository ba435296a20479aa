"""Merging with torch: similarities in tiles, sums by `index_add_`."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from meda_cache.ops import gather_states

TILE_ELEMENTS = 2**20
"""Number of similarities held at once: 4 MiB in float32."""


def find_nearest(key_states: Tensor, kept: Tensor, evicted: Tensor) -> tuple[Tensor, Tensor]:
    """See [`meda_cache.ops.merge.find_nearest`]."""
    targets = normalize(gather_states(key_states, kept).float(), dim=-1, eps=1e-6).transpose(1, 2)
    nearest = torch.empty_like(evicted)
    cosine = torch.empty(evicted.shape, dtype=torch.float32, device=evicted.device)
    size = max(1, TILE_ELEMENTS // kept.shape[1])
    for head, states in enumerate(key_states):
        for start in range(0, evicted.shape[1], size):
            rows = slice(start, start + size)
            sources = normalize(states[evicted[head, rows]].float(), dim=-1, eps=1e-6)
            cosine[head, rows], nearest[head, rows] = torch.mm(sources, targets[head]).max(dim=-1)
    return nearest, cosine


def merge_segments(
    states: Tensor, kept: Tensor, evicted: Tensor, nearest: Tensor, weights: Tensor, rule: str
) -> Tensor:
    """See [`meda_cache.ops.merge.merge_segments`]."""
    num_heads, num_kept = kept.shape
    own = gather_states(states, kept)
    offset = torch.arange(num_heads, device=kept.device)[:, None] * num_kept
    is_merged = (nearest >= 0).flatten()
    target = (nearest + offset).flatten()[is_merged]
    weight = torch.full_like(weights, 0.5) if rule == "pivotal" else weights
    weight = weight.float().flatten()[is_merged]
    others = gather_states(states, evicted).flatten(0, 1)[is_merged].float() * weight[:, None]
    count = weight.new_zeros(num_heads * num_kept).index_add_(0, target, torch.ones_like(weight))
    total = own.float().flatten(0, 1)
    if rule == "pivotal":
        total = total * (1 + count / 2)[:, None]
    total = total.index_add(0, target, others)
    divisor = 1 + (weight.new_zeros(count.shape).index_add_(0, target, weight) if rule == "normalized" else count)
    merged = (total / divisor[:, None]).to(states.dtype).reshape(own.shape)
    return torch.where((count > 0).reshape(num_heads, num_kept, 1), merged, own)
