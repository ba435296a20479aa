"""The statistics of attention in tiles of rows: memory grows with the number of keys and not with its square."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ELEMENTS = 2**18
"""Number of attention scores held at once: 1 MiB in float32, which stays in the processor's cache."""


@dataclass(frozen=True)
class Tile:
    """Some rows, in order, and the keys that they may see.

    All rows see the first `num_shared` keys and none a key from `num_keys` on. Which of those between are not seen,
    `hidden` says, `(rows, num_keys - num_shared)`; it is None if there are none between.
    """

    rows: slice
    num_shared: int
    num_keys: int
    hidden: Tensor | None


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
) -> tuple[Tensor | None, Tensor | None]:
    """Returns key mass and row entropy; arguments as in [`meda_cache.ops.statistics.attention_statistics`]."""
    (num_heads, num_rows, _), (num_key_value_heads, num_keys, _) = query_states.shape, key_states.shape
    groups = num_heads // num_key_value_heads
    queries = (query_states.float() * scaling).unflatten(0, (num_key_value_heads, groups))
    keys = key_states.float().transpose(1, 2).contiguous()
    mass = keys.new_zeros(num_key_value_heads, num_keys)
    entropy = keys.new_zeros(num_rows)
    size = max(1, TILE_ELEMENTS // (groups * max(num_keys, 1)))
    for tile in _split_rows(num_rows, num_keys, size, query_positions, key_positions, visible):
        total = keys.new_zeros(())
        for head in range(num_key_value_heads):  # a matrix at a time, which stays in the cache
            probs = _attend(queries[head], keys[head], tile)
            if with_mass:
                mass[head, : tile.num_keys] += probs.sum(dim=(0, 1))
            if head_reduction == "mean_attention":
                total = total + probs.sum(dim=0)
            elif head_reduction == "mean_entropy":
                entropy[tile.rows] += _entropy(probs).sum(dim=0) / num_heads
        if head_reduction == "mean_attention":
            entropy[tile.rows] = _entropy(total / num_heads)
    return mass if with_mass else None, entropy if head_reduction is not None else None


def _split_rows(
    num_rows: int,
    num_keys: int,
    size: int,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    visible: Tensor | None,
) -> Iterator[Tile]:
    """Yields tiles of `size` rows; where attention is causal, a tile ends at the last key that one of them sees."""
    seen: list[int] = []
    if query_positions is not None and key_positions is not None:
        seen = torch.searchsorted(key_positions, query_positions, right=True).tolist()
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        if query_positions is not None and key_positions is not None:
            few, many = seen[start], seen[rows.stop - 1]
            yield Tile(rows, few, many, key_positions[few:many] > query_positions[rows, None])
        elif visible is not None:
            yield Tile(rows, 0, num_keys, ~visible[rows])
        else:
            yield Tile(rows, num_keys, num_keys, None)


def _attend(queries: Tensor, keys: Tensor, tile: Tile) -> Tensor:
    """Returns attention `(groups, rows, num_keys)` of the heads `(groups, num_rows, head_dim)` of one key head."""
    rows = queries[:, tile.rows]
    scores = torch.mm(rows.flatten(0, 1), keys[:, : tile.num_keys]).unflatten(0, rows.shape[:2])
    if tile.hidden is not None:
        scores[..., tile.num_shared :].masked_fill_(tile.hidden, torch.finfo(scores.dtype).min)
    probs: Tensor = scores.softmax(dim=-1)
    if tile.hidden is not None and tile.num_shared == 0:  # a row may see nothing at all
        probs.masked_fill_(tile.hidden, 0.0)
    return probs


def _entropy(probs: Tensor) -> Tensor:
    """Returns the entropy of the last axis, in nats; 0 log 0 is 0. On a CPU twice as fast as `torch.special.entr`."""
    logs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    return -torch.sum(probs * logs, dim=-1)
