"""What attention says of a layer, its entropy, and of a key, its mass."""

import math

import torch
from torch import Tensor

from meda_cache.ops import Backend
from meda_cache.ops.statistics import HeadReduction, attention_statistics


def cross_modal_entropy(
    query_states: Tensor,
    key_states: Tensor,
    visual_mask: Tensor,
    *,
    scaling: float | None = None,
    head_reduction: HeadReduction = "mean_attention",
    causal: bool = False,
    normalize: bool = False,
    query_limit: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Returns the cross-modal attention entropy of one layer, in nats.

    Text attends to visual tokens only and visual tokens to text only, each with a softmax of its own; the entropies of
    the two are averaged over their rows and added (MEDA, arXiv 2502.17599, section 3.1). As in the paper there is no
    causal mask and heads are averaged before the entropy is taken.

    Args:
        query_states (`torch.Tensor` of shape `(num_heads, seq_len, head_dim)`):
            Queries of one prompt without padding, after the rotary embedding.
        key_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, head_dim)`):
            Keys of the same tokens. Query head `h` uses key head `h // (num_heads // num_key_value_heads)`.
        visual_mask (`torch.Tensor` of shape `(seq_len,)`, bool):
            True where the token is visual.
        scaling (`float`, *optional*, defaults to `head_dim**-0.5`):
            Factor of the scores.
        head_reduction (`"mean_attention"` or `"mean_entropy"`, *optional*, defaults to `"mean_attention"`):
            Average the attention over heads and take its entropy (the paper), or average the entropies of the heads
            (the released function; never larger).
        causal (`bool`, *optional*, defaults to `False`):
            Let a token attend only to tokens before it. Rows that see no token of the other modality are left out.
        normalize (`bool`, *optional*, defaults to `False`):
            Divide the entropy of a row by the logarithm of the number of keys that it sees, which gives [0, 1] a row.
        query_limit (`int`, *optional*):
            Use at most so many rows of each modality, at equal distances; None uses all.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].

    Returns:
        `torch.Tensor` of shape `()`, float32: between 0 and `ln(num_text) + ln(num_visual)` unless `normalize`.

    Raises:
        ValueError: if the prompt has no text or no visual token: the entropy is then undefined.

    Example:

    ```python
    >>> import torch
    >>> from meda_cache import cross_modal_entropy
    >>> visual_mask = torch.tensor([False, True, True, True, True, False])
    >>> states = torch.zeros(2, 6, 8)  # equal scores everywhere: every row is uniform
    >>> round(cross_modal_entropy(states, states, visual_mask).exp().item(), 3)  # 4 visual tokens x 2 text tokens
    8.0

    ```
    """
    positions = torch.arange(len(visual_mask), device=visual_mask.device)
    text, visual = positions[~visual_mask], positions[visual_mask]
    if len(visual) == 0 or len(text) == 0:
        raise ValueError(
            f"Cross-modal entropy needs text and visual tokens, got {len(text)} text and {len(visual)} visual tokens; "
            "use `attention_entropy` for prompts of one modality."
        )
    total = torch.zeros((), device=key_states.device)
    for rows, columns in ((text, visual), (visual, text)):
        rows = take_strided(rows, query_limit)
        row_sum, num_rows = sum_row_entropies(
            query_states[:, rows],
            key_states[:, columns],
            rows if causal else None,
            columns if causal else None,
            scaling=scaling,
            head_reduction=head_reduction,
            normalize=normalize,
            backend=backend,
        )
        total = total + row_sum / num_rows.clamp(min=1)
    return total


def sum_row_entropies(
    query_states: Tensor,
    key_states: Tensor,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    *,
    scaling: float | None,
    head_reduction: HeadReduction,
    normalize: bool,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """Returns the sum of the row entropies and the number of rows that see a key; both add up over pieces of rows."""
    statistics = attention_statistics(
        query_states,
        key_states,
        scaling=scaling,
        query_positions=query_positions,
        key_positions=key_positions,
        with_mass=False,
        head_reduction=head_reduction,
        backend=backend,
    )
    entropy, num_visible = statistics.row_entropy, statistics.num_visible
    assert entropy is not None
    return normalize_entropy(entropy, num_visible, normalize).sum(), (num_visible > 0).sum()


def normalize_entropy(entropy: Tensor, num_visible: Tensor, normalize: bool) -> Tensor:
    """Returns row entropies divided by the logarithm of the number of keys that a row sees, if asked."""
    return entropy / num_visible.clamp(min=2).log() if normalize else entropy


def take_strided(rows: Tensor, limit: int | None) -> Tensor:
    """Returns at most `limit` of the rows, at equal distances from the last one backwards."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows.flip(0)[:: math.ceil(len(rows) / limit)].flip(0)


def attention_entropy(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float | None = None,
    visible: Tensor | None = None,
    head_reduction: HeadReduction = "mean_attention",
    normalize: bool = False,
    query_limit: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Returns the entropy of the model's own attention, averaged over its rows, in nats.

    This is what the released code of MEDA computes in place of the cross-modal entropy (with
    `head_reduction="mean_entropy"`), and what a prompt of a single modality needs.

    Args:
        query_states (`torch.Tensor` of shape `(num_heads, seq_len, head_dim)`): see [`cross_modal_entropy`].
        key_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, head_dim)`): see [`cross_modal_entropy`].
        scaling (`float`, *optional*, defaults to `head_dim**-0.5`): factor of the scores.
        visible (`torch.Tensor` of shape `(seq_len, seq_len)`, bool, *optional*, defaults to the causal triangle):
            True where the row's query may see the column's key.
        head_reduction, normalize, query_limit, backend: see [`cross_modal_entropy`].

    Returns:
        `torch.Tensor` of shape `()`, float32: between 0 and `ln(seq_len)` unless `normalize`.

    Example:

    ```python
    >>> import math, torch
    >>> from meda_cache import attention_entropy
    >>> states = torch.zeros(1, 3, 4)  # row i is uniform over i + 1 keys
    >>> expected = (math.log(1) + math.log(2) + math.log(3)) / 3
    >>> abs(attention_entropy(states, states).item() - expected) < 1e-6
    True

    ```
    """
    positions = torch.arange(key_states.shape[1], device=key_states.device)
    rows = take_strided(positions, query_limit)
    statistics = attention_statistics(
        query_states[:, rows],
        key_states,
        scaling=scaling,
        query_positions=rows if visible is None else None,
        key_positions=positions if visible is None else None,
        visible=None if visible is None else visible[rows],
        with_mass=False,
        head_reduction=head_reduction,
        backend=backend,
    )
    assert statistics.row_entropy is not None
    return normalize_entropy(statistics.row_entropy, statistics.num_visible, normalize).mean()


def key_mass(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float | None = None,
    visible: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Returns the attention that every key receives from all queries of the prompt (H2O, arXiv 2306.14048).

    Args:
        query_states (`torch.Tensor` of shape `(num_heads, seq_len, head_dim)`): see [`cross_modal_entropy`].
        key_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, head_dim)`): see [`cross_modal_entropy`].
        scaling (`float`, *optional*, defaults to `head_dim**-0.5`): factor of the scores.
        visible (`torch.Tensor` of shape `(seq_len, seq_len)`, bool, *optional*, defaults to the causal triangle):
            True where the row's query may see the column's key.
        backend (`str`, *optional*, defaults to `"auto"`): see [`meda_cache.ops`].

    Returns:
        `torch.Tensor` of shape `(num_key_value_heads, seq_len)`, float32: summed over the queries and over the query
        heads that share a key head. A row of it adds up to `seq_len * num_heads / num_key_value_heads`.

    Example:

    ```python
    >>> import torch
    >>> from meda_cache import key_mass
    >>> states = torch.zeros(1, 2, 4)
    >>> key_mass(states, states).tolist()  # the first query sees key 0 only, the second sees both alike
    [[1.5, 0.5]]

    ```
    """
    positions = torch.arange(key_states.shape[1], device=key_states.device)
    mass = attention_statistics(
        query_states,
        key_states,
        scaling=scaling,
        query_positions=positions if visible is None else None,
        key_positions=positions if visible is None else None,
        visible=visible,
        backend=backend,
    ).key_mass
    assert mass is not None
    return mass
