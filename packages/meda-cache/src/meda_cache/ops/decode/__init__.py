"""Attention of one new token over the slots of one layer."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from meda_cache.ops import Backend, resolve_backend


def decode_attention(
    query_states: Tensor,
    key_states: Tensor,
    value_states: Tensor,
    *,
    start: Tensor | None = None,
    bias: Tensor | None = None,
    scaling: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Returns attention of a single query over slots `start` to the end, in the layout of the model.

    Args:
        query_states (`torch.Tensor` of shape `(batch_size, num_heads, 1, head_dim)`): the new token's queries.
        key_states (`torch.Tensor` of shape `(batch_size, num_key_value_heads, num_slots, head_dim)`): keys.
        value_states (`torch.Tensor` of shape `(batch_size, num_key_value_heads, num_slots, value_head_dim)`): values.
        start (`torch.Tensor` of shape `(batch_size,)`, int, *optional*): first slot of each prompt that is not empty.
        bias (`torch.Tensor` of shape `(batch_size, num_key_value_heads, num_slots)`, *optional*):
            Added to the scores of a slot, in nats.
        scaling (`float`, *optional*, defaults to `head_dim**-0.5`): factor of the scores.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].

    Returns:
        `torch.Tensor` of shape `(batch_size, 1, num_heads, value_head_dim)`.
    """
    scaling = query_states.shape[-1] ** -0.5 if scaling is None else scaling
    if resolve_backend(backend, key_states) == "triton":
        from meda_cache.ops.decode import _triton

        return _triton.decode_attention(query_states, key_states, value_states, start, bias, scaling)
    batch_size, num_heads, _, _ = query_states.shape
    num_key_value_heads, num_slots = key_states.shape[1:3]
    mask = None
    if start is not None or bias is not None:
        mask = query_states.new_zeros(batch_size, num_key_value_heads, num_slots) if bias is None else bias
        if start is not None:
            is_empty = torch.arange(num_slots, device=start.device) < start[:, None, None]
            mask = mask.masked_fill(is_empty, -torch.inf)
        mask = mask.to(query_states.dtype)[:, :, None]
    # The query heads that share a key head are rows of one attention: keys are not repeated.
    queries = query_states.reshape(batch_size, num_key_value_heads, num_heads // num_key_value_heads, -1)
    output = scaled_dot_product_attention(queries, key_states, value_states, attn_mask=mask, scale=scaling)
    return output.reshape(batch_size, 1, num_heads, -1)
