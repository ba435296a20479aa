"""Attention of one query, one head at a time, in float64."""

import torch
from torch import Tensor


def decode_attention(
    query_states: Tensor,
    key_states: Tensor,
    value_states: Tensor,
    start: Tensor | None,
    bias: Tensor | None,
    scaling: float,
) -> Tensor:
    """`softmax(scaling * q K^T + bias) V` over the slots from `start`; shapes as in [`meda_cache.ops.decode`]."""
    batch_size, num_heads, _, _ = query_states.shape
    groups = num_heads // key_states.shape[1]
    output = torch.zeros(batch_size, 1, num_heads, value_states.shape[-1], dtype=torch.float64)
    for row in range(batch_size):
        first = 0 if start is None else int(start[row])
        for head in range(num_heads):
            keys, values = (states[row, head // groups, first:].double() for states in (key_states, value_states))
            scores = scaling * keys @ query_states[row, head, 0].double()
            if bias is not None:
                scores = scores + bias[row, head // groups, first:].double()
            output[row, 0, head] = scores.softmax(dim=0) @ values
    return output
