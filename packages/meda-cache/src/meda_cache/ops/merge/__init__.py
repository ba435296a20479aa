"""Merging evicted tokens into kept ones: which kept key is nearest, and what a kept token becomes."""

from typing import Literal

from torch import Tensor

from meda_cache.ops import Backend, resolve_backend
from meda_cache.ops.merge import _torch

Rule = Literal["mean", "pivotal", "normalized"]


def find_nearest(
    key_states: Tensor, kept: Tensor, evicted: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Returns for each evicted key the kept one with the largest cosine (the first one on ties), and that cosine.

    Args:
        key_states (`torch.Tensor` of shape `(num_heads, seq_len, head_dim)`): all keys.
        kept (`torch.Tensor` of shape `(num_heads, num_kept)`, int64): positions of the kept keys, at least one.
        evicted (`torch.Tensor` of shape `(num_heads, num_evicted)`, int64): positions of the others.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].

    Returns:
        Indices into `kept` and cosines, both `(num_heads, num_evicted)`. The similarity matrix is never held.
    """
    if resolve_backend(backend, key_states) == "triton":
        from meda_cache.ops.merge import _triton

        return _triton.find_nearest(key_states, kept, evicted)
    return _torch.find_nearest(key_states, kept, evicted)


def merge_segments(
    states: Tensor,
    kept: Tensor,
    evicted: Tensor,
    nearest: Tensor,
    weights: Tensor,
    *,
    rule: Rule = "mean",
    backend: Backend = "auto",
) -> Tensor:
    """Returns the kept states, each with the evicted ones that point to it merged into it.

    With `r` evicted states `e` of weight `w` that point to the kept state `c`: `"mean"` is `(c + sum w e) / (1 + r)`,
    `"pivotal"` is `(c + sum (c + e) / 2) / (1 + r)`, `"normalized"` is `(c + sum w e) / (1 + sum w)`. Sums are float32
    and in the order of positions. A state to which nothing points is bit-identical.

    Args:
        states (`torch.Tensor` of shape `(num_heads, seq_len, head_dim)`): keys or values.
        kept, evicted: see [`find_nearest`].
        nearest (`torch.Tensor` of shape `(num_heads, num_evicted)`, int64): index into `kept`, -1 to drop the state.
        weights (`torch.Tensor` of shape `(num_heads, num_evicted)`, float32): weights; `"pivotal"` takes none.
        rule (`str`, *optional*, defaults to `"mean"`): one of the above.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].
    """
    if resolve_backend(backend, states) == "triton":
        from meda_cache.ops.merge import _triton

        return _triton.merge_segments(states, kept, evicted, nearest, weights, rule)
    return _torch.merge_segments(states, kept, evicted, nearest, weights, rule)
