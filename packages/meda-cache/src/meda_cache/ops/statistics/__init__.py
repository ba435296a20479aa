"""What attention says about keys and rows: the mass a key receives, and how spread a row's attention is."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from meda_cache.ops import Backend, resolve_backend
from meda_cache.ops.statistics._torch import compute_statistics

HeadReduction = Literal["mean_attention", "mean_entropy"]


@dataclass(frozen=True)
class AttentionStatistics:
    """What one pass over attention gives.

    `key_mass` is `(num_key_value_heads, num_keys)` and `row_entropy` `(num_rows,)`, in nats, both float32 and None if
    not asked for. `num_visible` `(num_rows,)` is the number of keys that a row may see; a row without any adds nothing
    to the mass and has entropy 0.
    """

    key_mass: Tensor | None
    row_entropy: Tensor | None
    num_visible: Tensor


def attention_statistics(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    visible: Tensor | None = None,
    with_mass: bool = True,
    head_reduction: HeadReduction | None = None,
    lse: Tensor | None = None,
    backend: Backend = "auto",
) -> AttentionStatistics:
    """Returns statistics of `softmax(scaling * query_states @ key_states.T)`, never held as a whole.

    Args:
        query_states (`torch.Tensor` of shape `(num_heads, num_rows, head_dim)`): rows of attention.
        key_states (`torch.Tensor` of shape `(num_key_value_heads, num_keys, head_dim)`):
            Columns. Query head `h` uses key head `h // (num_heads // num_key_value_heads)`.
        scaling (`float`, *optional*, defaults to `head_dim**-0.5`): factor of the scores.
        query_positions (`torch.Tensor` of shape `(num_rows,)`), key_positions (`(num_keys,)`), *optional*:
            Both, ascending: a row sees the keys up to its own position. Without them it sees all.
        visible (`torch.Tensor` of shape `(num_rows, num_keys)`, bool, *optional*): which keys a row sees, instead.
        with_mass (`bool`, *optional*, defaults to `True`): compute the key mass, summed over rows and query heads.
        head_reduction (`"mean_attention"` or `"mean_entropy"`, *optional*):
            Entropy of the attention averaged over heads, or the mean of the heads' entropies; None: no entropy.
        lse (`torch.Tensor` of shape `(num_heads, num_rows)`, *optional*):
            Natural logarithm of the sum of exponentials of each row's scores, from the attention op where it gives
            one. It saves the kernels one of two passes; on a CPU a softmax is as fast without, which takes none.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].
    """
    scaling = key_states.shape[-1] ** -0.5 if scaling is None else scaling
    if visible is not None:
        num_visible = visible.sum(dim=-1)
    elif query_positions is not None and key_positions is not None:
        num_visible = torch.searchsorted(key_positions, query_positions, right=True)
    else:
        num_visible = torch.full((query_states.shape[1],), key_states.shape[1], device=key_states.device)
    options: dict[str, Any] = {
        "scaling": scaling,
        "query_positions": query_positions,
        "key_positions": key_positions,
        "visible": visible,
        "with_mass": with_mass,
        "head_reduction": head_reduction,
    }
    if resolve_backend(backend, key_states) == "triton":
        from meda_cache.ops.statistics import _triton

        mass, entropy = _triton.compute_statistics(query_states, key_states, lse=lse, **options)
    else:
        mass, entropy = compute_statistics(query_states, key_states, **options)
    return AttentionStatistics(mass, entropy, num_visible)
