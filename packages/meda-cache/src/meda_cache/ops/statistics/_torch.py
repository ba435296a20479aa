"""The statistics of attention in tiles of rows: memory grows with the number of keys and not with its square."""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_ELEMENTS = 2**18
"""Number of attention scores held at once: 1 MiB in float32, which stays in the processor's cache."""


def compute_statistics(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    visible: Tensor | None,
    with_mass: bool,
    head_reduction: str | None,
    lse: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns key mass and row entropy; arguments as in [`meda_cache.ops.statistics.attention_statistics`]."""
    mass = key_states.new_zeros(key_states.shape[:2], dtype=torch.float32) if with_mass else None
    entropies = []
    for probs in iter_attention(query_states, key_states, scaling, query_positions, key_positions, visible, lse):
        if mass is not None:
            mass[:, : probs.shape[-1]] += probs.sum(dim=(1, 2))
        if head_reduction == "mean_attention":
            entropies.append(torch.special.entr(probs.mean(dim=(0, 1))).sum(dim=-1))
        elif head_reduction == "mean_entropy":
            entropies.append(torch.special.entr(probs).sum(dim=-1).mean(dim=(0, 1)))
    entropy = torch.cat([mass.new_zeros(0) if mass is not None else key_states.new_zeros(0).float(), *entropies])
    return mass, entropy if head_reduction is not None else None


def iter_attention(
    query_states: Tensor,
    key_states: Tensor,
    scaling: float,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    visible: Tensor | None,
    lse: Tensor | None,
) -> Iterator[Tensor]:
    """Yields attention `(num_key_value_heads, groups, rows, keys)` by tiles of rows, in order.

    A causal tile ends at the last key that one of its rows sees.
    """
    num_heads, num_rows, _ = query_states.shape
    num_key_value_heads, num_keys, head_dim = key_states.shape
    groups = num_heads // num_key_value_heads
    keys = key_states.float().transpose(1, 2)
    size = max(1, TILE_ELEMENTS // (num_heads * max(num_keys, 1)))
    for start in range(0, num_rows, size):
        rows = slice(start, start + size)
        hidden, width = None, num_keys
        if query_positions is not None and key_positions is not None:
            width = int(torch.searchsorted(key_positions, query_positions[rows][-1:], right=True))
            hidden = key_positions[:width] > query_positions[rows, None]
        elif visible is not None:
            hidden = ~visible[rows]
        queries = (query_states[:, rows].float() * scaling).reshape(num_key_value_heads, -1, head_dim)
        scores = torch.matmul(queries, keys[:, :, :width]).unflatten(1, (groups, -1))
        if hidden is not None:
            scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)  # a row may see nothing at all
        if lse is None:
            probs = scores.softmax(dim=-1)
        else:
            probs = scores.sub_(lse[:, rows].float().reshape(num_key_value_heads, groups, -1, 1)).exp_()
        yield probs if hidden is None else probs.masked_fill_(hidden, 0.0)
