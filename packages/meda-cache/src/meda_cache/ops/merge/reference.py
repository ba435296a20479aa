"""Merging one token at a time, in float64."""

import torch
from torch import Tensor


def find_nearest(key_states: Tensor, kept: Tensor, evicted: Tensor) -> tuple[Tensor, Tensor]:
    """`argmax_c cos(k_e, k_c)`, norms clamped by 1e-6, the first maximum on ties; and the maximum."""
    nearest, cosine = torch.zeros_like(evicted), torch.zeros(evicted.shape, dtype=torch.float64)
    for head in range(kept.shape[0]):
        unit = torch.nn.functional.normalize(key_states[head].double(), dim=-1, eps=1e-6)
        for index, position in enumerate(evicted[head].tolist()):
            similarities = [float(unit[position] @ unit[target]) for target in kept[head].tolist()]
            nearest[head, index] = similarities.index(max(similarities))
            cosine[head, index] = max(similarities)
    return nearest, cosine


def merge_segments(
    states: Tensor, kept: Tensor, evicted: Tensor, nearest: Tensor, weights: Tensor, rule: str
) -> Tensor:
    """`(c + sum w e) / (1 + r)` and its variants, see [`meda_cache.ops.merge.merge_segments`]."""
    merged = torch.zeros(*kept.shape, states.shape[-1], dtype=torch.float64)
    for head in range(kept.shape[0]):
        for slot, position in enumerate(kept[head].tolist()):
            own = states[head, position].double()
            total, divisor = own.clone(), 1.0
            for index in (nearest[head] == slot).nonzero().flatten().tolist():
                other, weight = states[head, int(evicted[head, index])].double(), float(weights[head, index])
                total += (own + other) / 2 if rule == "pivotal" else weight * other
                divisor += weight if rule == "normalized" else 1.0
            merged[head, slot] = total / divisor
    return merged
