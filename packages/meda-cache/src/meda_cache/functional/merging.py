"""What becomes of the tokens that are not kept."""

from typing import Literal

import torch
from torch import Tensor

from meda_cache.ops import Backend, gather_states
from meda_cache.ops.merge import Rule, find_nearest, merge_segments

Merge = Literal["average", "value", "pivotal", "weighted", "weighted_normalized", "none"]


def merge_tokens(
    key_states: Tensor,
    value_states: Tensor,
    kept: Tensor,
    *,
    merge: Merge = "average",
    similarity_threshold: float | Literal["mean"] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Returns the kept keys and values with every other token merged into the kept one with the nearest key.

    A kept token `c` into which the `r` evicted tokens `e` of cosines `s` are merged becomes:

    | merge | keys and values | source |
    |---|---|---|
    | `"average"` | `(c + sum e) / (r + 1)` | MEDA, arXiv 2502.17599, section 3.3 |
    | `"value"` | keys as they are, values as in `"average"` | does not mix keys turned by different rotary angles |
    | `"pivotal"` | `(c + sum (e + c) / 2) / (r + 1)` | LOOK-M, arXiv 2406.18139 |
    | `"weighted"` | `(c + sum s e) / (r + 1)` | LOOK-M; norms shrink, and a negative `s` turns `e` around |
    | `"weighted_normalized"` | `(c + sum s e) / (1 + sum s)`, `s` clipped at 0 | a convex combination; ours |
    | `"none"` | `c` | plain eviction |

    Args:
        key_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, head_dim)`): all keys of the prompt.
        value_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, value_head_dim)`): all values.
        kept (`torch.Tensor` of shape `(num_key_value_heads, num_kept)`, int64): kept positions, ascending.
        merge (`str`, *optional*, defaults to `"average"`): one of the above.
        similarity_threshold (`float` or `"mean"`, *optional*):
            Drop evicted tokens whose cosine is lower. `"mean"` is the filter of the released code: the i-th evicted
            tokens of all heads are merged where their mean cosine is at least the mean over all.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].

    Returns:
        `tuple` of `torch.Tensor` of shape `(num_key_value_heads, num_kept, head_dim)` and of the same shape with
        `value_head_dim`, in the dtype of the input. A slot into which nothing is merged is bit-identical.

    Example:

    ```python
    >>> import torch
    >>> from meda_cache import merge_tokens
    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]])
    >>> values = torch.tensor([[[1.0], [5.0], [3.0]]])
    >>> merge_tokens(keys, values, torch.tensor([[0, 1]]), merge="value")[1].tolist()  # token 2 is nearest to token 0
    [[[2.0], [5.0]]]

    ```
    """
    return merge_and_count(
        key_states, value_states, kept, merge=merge, similarity_threshold=similarity_threshold, backend=backend
    )[:2]


def merge_and_count(
    key_states: Tensor,
    value_states: Tensor,
    kept: Tensor,
    *,
    merge: Merge,
    similarity_threshold: float | Literal["mean"] | None,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what [`merge_tokens`] returns, and how many tokens were merged into each kept one."""
    num_heads, seq_len, _ = key_states.shape
    if merge == "none" or kept.shape[1] == seq_len:
        return gather_states(key_states, kept), gather_states(value_states, kept), torch.zeros_like(kept)
    is_evicted = torch.ones(num_heads, seq_len, dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
    evicted = is_evicted.nonzero()[:, 1].reshape(num_heads, -1)
    nearest, cosine = find_nearest(key_states, kept, evicted, backend=backend)
    if similarity_threshold == "mean":
        nearest = torch.where(cosine.mean(dim=0) >= cosine.mean(), nearest, -1)
    elif similarity_threshold is not None:
        nearest = torch.where(cosine >= similarity_threshold, nearest, -1)
    rule: Rule = "pivotal" if merge == "pivotal" else "normalized" if merge == "weighted_normalized" else "mean"
    weights = torch.ones_like(cosine) if merge in ("average", "value", "pivotal") else cosine
    if merge == "weighted_normalized":
        weights = weights.clamp(min=0)

    def merge_states(states: Tensor) -> Tensor:
        return merge_segments(states, kept, evicted, nearest, weights, rule=rule, backend=backend)

    is_merged = nearest >= 0
    count = torch.zeros_like(kept).scatter_add(1, nearest.clamp(min=0), is_merged.long())
    merged_keys = gather_states(key_states, kept) if merge == "value" else merge_states(key_states)
    return merged_keys, merge_states(value_states), count
