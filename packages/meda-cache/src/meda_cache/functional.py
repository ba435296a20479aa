"""The formulas of MEDA (arXiv 2502.17599) for one prompt: tensors in, tensors out, no model, no cache.

Everything is computed in float32 whatever comes in. Attention is never held as a whole: it is made and reduced in
tiles of query rows, so that memory grows with the prompt length and not with its square.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

TILE_ELEMENTS = 2**18
"""Number of attention scores held at once: 1 MiB in float32, which stays in the processor's cache."""


def cross_modal_entropy(
    query_states: Tensor,
    key_states: Tensor,
    visual_mask: Tensor,
    *,
    scaling: float | None = None,
    head_reduction: Literal["mean_attention", "mean_entropy"] = "mean_attention",
    causal: bool = False,
    normalize: bool = False,
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
    visual = visual_mask.nonzero().flatten()
    text = (~visual_mask).nonzero().flatten()
    if len(visual) == 0 or len(text) == 0:
        raise ValueError(
            f"Cross-modal entropy needs text and visual tokens, got {len(text)} text and {len(visual)} visual tokens; "
            "use `attention_entropy` for prompts of one modality."
        )
    total = query_states.new_zeros((), dtype=torch.float32)
    for rows, columns in ((text, visual), (visual, text)):
        row_sum, num_rows = total.new_zeros(()), 0
        for tile, probs, num_visible in _iter_attention(
            query_states[:, rows], key_states[:, columns], rows, columns, scaling, causal=causal
        ):
            seen = num_visible > 0
            row_sum = row_sum + _row_entropy(probs, num_visible, head_reduction, normalize)[seen].sum()
            num_rows += int(seen.sum()) if causal else len(tile)
        total = total + row_sum / max(num_rows, 1)
    return total


def attention_entropy(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float | None = None,
    visible: Tensor | None = None,
    head_reduction: Literal["mean_attention", "mean_entropy"] = "mean_attention",
    normalize: bool = False,
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
        head_reduction, normalize: see [`cross_modal_entropy`].

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
    return attention_statistics(
        query_states,
        key_states,
        scaling=scaling,
        visible=visible,
        head_reduction=head_reduction,
        normalize=normalize,
    )[1]


def key_mass(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Returns the attention that every key receives from all queries of the prompt (H2O, arXiv 2306.14048).

    Args:
        query_states (`torch.Tensor` of shape `(num_heads, seq_len, head_dim)`): see [`cross_modal_entropy`].
        key_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, head_dim)`): see [`cross_modal_entropy`].
        scaling (`float`, *optional*, defaults to `head_dim**-0.5`): factor of the scores.
        visible (`torch.Tensor` of shape `(seq_len, seq_len)`, bool, *optional*, defaults to the causal triangle):
            True where the row's query may see the column's key.

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
    return attention_statistics(query_states, key_states, scaling=scaling, visible=visible, head_reduction=None)[0]


def attention_statistics(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float | None = None,
    visible: Tensor | None = None,
    head_reduction: Literal["mean_attention", "mean_entropy"] | None = "mean_attention",
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns [`key_mass`] and [`attention_entropy`] from one pass; the latter is 0 if `head_reduction` is None."""
    num_key_value_heads, seq_len, _ = key_states.shape
    positions = torch.arange(seq_len, device=key_states.device)
    mass = key_states.new_zeros(num_key_value_heads, seq_len, dtype=torch.float32)
    total = mass.new_zeros(())
    for _, probs, num_visible in _iter_attention(
        query_states, key_states, positions, positions, scaling, causal=visible is None, visible=visible
    ):
        mass[:, : probs.shape[-1]] += probs.sum(dim=(1, 2))
        if head_reduction is not None:
            total = total + _row_entropy(probs, num_visible, head_reduction, normalize).sum()
    return mass, total / seq_len


def allocate_budgets(weights: Tensor, total: int, *, minimum: int = 1, maximum: int) -> list[int]:
    """Returns how many tokens each layer keeps: in proportion to its weight, within bounds, adding up exactly.

    MEDA gives layer `l` the share `softmax(entropy)_l` of the whole budget (arXiv 2502.17599, section 3.2). The paper
    has no bounds and its code clamps without giving the rest to others, so that budget is lost or overspent. Here
    `s * weights` is clipped to `[minimum, maximum]` with the one `s` that makes the sum right, and rounded by largest
    remainders, ties to the lower layer. Where no bound is active this is the paper's formula.

    Args:
        weights (`torch.Tensor` of shape `(num_layers,)`): positive; only their ratios matter.
        total (`int`): tokens over all layers; brought within `num_layers * [minimum, maximum]` first.
        minimum (`int`, *optional*, defaults to 1): least number of tokens of a layer.
        maximum (`int`): largest number of tokens of a layer: the length of the prompt.

    Returns:
        `list[int]` of length `num_layers` whose sum is `total`.

    Raises:
        ValueError: if weights are negative, not finite or all zero, or if `minimum` is above `maximum`.

    Example:

    ```python
    >>> import torch
    >>> from meda_cache import allocate_budgets
    >>> allocate_budgets(torch.tensor([1.0, 1.0, 2.0]), 10, maximum=10)
    [3, 2, 5]
    >>> allocate_budgets(torch.tensor([1.0, 1.0, 8.0]), 15, maximum=6)  # layer 2 is full, the others get its surplus
    [5, 4, 6]

    ```
    """
    shares = weights.detach().to("cpu", torch.float64)
    if shares.ndim != 1 or not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()) or shares.sum() == 0:
        raise ValueError(
            f"Expected `weights` of shape (num_layers,), finite, >= 0, not all 0, got {weights.tolist()}."
        )
    if not 0 <= minimum <= maximum:
        raise ValueError(f"Expected 0 <= minimum <= maximum, got minimum={minimum} and maximum={maximum}.")
    num_layers = len(shares)
    total = min(max(total, num_layers * minimum), num_layers * maximum)
    shares = (shares / shares.max()).clamp(min=1e-250)
    low, high = -25.0, math.log(max(maximum, 1)) + 600.0
    for _ in range(200):  # bisection for ln(s); the sum grows with s
        middle = (low + high) / 2
        if (math.exp(middle) * shares).clamp(minimum, maximum).sum() < total:
            low = middle
        else:
            high = middle
    budgets = (math.exp(high) * shares).clamp(minimum, maximum)
    rounded = (budgets + 1e-9).floor()
    remainder = budgets - rounded
    remainder[rounded >= maximum] = -1.0
    order = torch.argsort(remainder, descending=True, stable=True)
    rounded[order[: total - int(rounded.sum())]] += 1
    return [int(budget) for budget in rounded]


def select_tokens(
    scores: Tensor,
    visual_mask: Tensor,
    *,
    num_recent: int,
    num_important: int,
    text_first: bool = True,
    num_sinks: int = 0,
) -> Tensor:
    """Returns the positions that each head keeps: the first, the last, and the best of those between.

    LOOK-M (arXiv 2406.18139) and MEDA keep the last tokens and, of the others, those with the largest scores, after
    the scores of text have been raised by the maximum over all tokens, so that any text comes before any image. Text
    first is done here by comparing (is text, score) pairs, which no precision can spoil.

    Args:
        scores (`torch.Tensor` of shape `(num_key_value_heads, seq_len)`):
            Higher is kept. Ties go to the lower position.
        visual_mask (`torch.Tensor` of shape `(seq_len,)`, bool): True where the token is visual.
        num_recent (`int`): number of last positions that are kept.
        num_important (`int`): number of positions kept by score.
        text_first (`bool`, *optional*, defaults to `True`): keep any text before any visual token.
        num_sinks (`int`, *optional*, defaults to 0): number of first positions that are kept.

    Returns:
        `torch.Tensor` of shape `(num_key_value_heads, num_sinks + num_important + num_recent)`, int64: positions in
        ascending order.

    Raises:
        ValueError: if more positions are asked for than there are.

    Example:

    ```python
    >>> import torch
    >>> from meda_cache import select_tokens
    >>> scores = torch.tensor([[0.1, 0.9, 0.5, 0.2, 0.3]])
    >>> visual_mask = torch.tensor([False, True, True, True, False])
    >>> select_tokens(scores, visual_mask, num_recent=1, num_important=2).tolist()
    [[0, 1, 4]]

    ```
    """
    num_heads, seq_len = scores.shape
    num_kept = num_sinks + num_important + num_recent
    if min(num_sinks, num_important, num_recent) < 0 or num_kept > seq_len:
        raise ValueError(
            f"Expected num_sinks + num_important + num_recent <= seq_len, all >= 0, got "
            f"{num_sinks} + {num_important} + {num_recent} for seq_len {seq_len}."
        )
    order = torch.argsort(scores.float(), dim=-1, descending=True, stable=True)
    if text_first:
        is_text = (~visual_mask)[order].to(torch.int8)
        order = order.gather(-1, torch.argsort(is_text, dim=-1, descending=True, stable=True))
    is_forced = (order < num_sinks) | (order >= seq_len - num_recent)
    order = order.gather(-1, torch.argsort(is_forced.to(torch.int8), dim=-1, descending=True, stable=True))
    return order[:, :num_kept].sort(dim=-1).values.reshape(num_heads, num_kept)


def merge_tokens(
    key_states: Tensor,
    value_states: Tensor,
    kept: Tensor,
    *,
    merge: Literal["average", "value", "none"] = "average",
) -> tuple[Tensor, Tensor]:
    """Returns the kept keys and values with every other token merged into the kept one with the nearest key.

    `average` is MEDA's merge (arXiv 2502.17599, section 3.3): a kept token becomes the mean of itself and of all
    evicted tokens whose keys are nearest to its key by cosine. `value` does so for values and leaves keys alone, which
    does not mix keys that the rotary embedding has turned by different angles.

    Args:
        key_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, head_dim)`): all keys of the prompt.
        value_states (`torch.Tensor` of shape `(num_key_value_heads, seq_len, value_head_dim)`): all values.
        kept (`torch.Tensor` of shape `(num_key_value_heads, num_kept)`, int64): kept positions, ascending.
        merge (`"average"`, `"value"` or `"none"`, *optional*, defaults to `"average"`): what to do with the others.

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
    num_heads, seq_len, _ = key_states.shape
    kept_keys = key_states.gather(1, kept[..., None].expand(-1, -1, key_states.shape[-1]))
    kept_values = value_states.gather(1, kept[..., None].expand(-1, -1, value_states.shape[-1]))
    if merge == "none" or kept.shape[1] == seq_len:
        return kept_keys, kept_values
    is_evicted = torch.ones(num_heads, seq_len, dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
    evicted = is_evicted.nonzero()[:, 1].reshape(num_heads, -1)
    nearest = _nearest_kept(key_states, evicted, kept_keys)

    def average(states: Tensor, kept_states: Tensor) -> Tensor:
        index = nearest[..., None].expand(-1, -1, states.shape[-1])
        evicted_states = states.gather(1, evicted[..., None].expand(-1, -1, states.shape[-1])).float()
        total = kept_states.float().scatter_add(1, index, evicted_states)
        count = torch.ones_like(kept, dtype=torch.float32).scatter_add(
            1, nearest, torch.ones_like(nearest, dtype=torch.float32)
        )
        merged = (total / count[..., None]).to(states.dtype)
        return torch.where((count == 1)[..., None], kept_states, merged)

    merged_keys = average(key_states, kept_keys) if merge == "average" else kept_keys
    return merged_keys, average(value_states, kept_values)


def _nearest_kept(key_states: Tensor, evicted: Tensor, kept_keys: Tensor) -> Tensor:
    """Returns for each evicted token the index of the kept key with the largest cosine, the first one on ties."""
    targets = torch.nn.functional.normalize(kept_keys.float(), dim=-1, eps=1e-6).transpose(1, 2)
    nearest = torch.empty_like(evicted)
    num_heads, num_kept = kept_keys.shape[:2]
    for rows in torch.arange(evicted.shape[1], device=evicted.device).split(
        max(1, TILE_ELEMENTS // (num_heads * num_kept))
    ):
        index = evicted[:, rows, None].expand(-1, -1, key_states.shape[-1])
        sources = torch.nn.functional.normalize(key_states.gather(1, index).float(), dim=-1, eps=1e-6)
        nearest[:, rows] = torch.matmul(sources, targets).argmax(dim=-1)  # (H, rows, K)
    return nearest


def _iter_attention(
    query_states: Tensor,
    key_states: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    scaling: float | None,
    *,
    causal: bool,
    visible: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields tiles of rows: their indices, their attention `(H_kv, G, rows, keys)`, and the number of visible keys.

    Positions ascend. A causal tile ends at the last key that one of its rows sees.
    """
    num_heads, _, head_dim = query_states.shape
    num_key_value_heads, num_keys, _ = key_states.shape
    groups = num_heads // num_key_value_heads
    scaling = head_dim**-0.5 if scaling is None else scaling
    keys = key_states.float().transpose(1, 2)
    for rows in torch.arange(query_states.shape[1], device=query_states.device).split(
        max(1, TILE_ELEMENTS // (num_heads * num_keys))
    ):
        allowed = None
        if causal:
            allowed = key_positions <= query_positions[rows, None]
            allowed = allowed[:, : int(allowed[-1].sum())]
        elif visible is not None:
            allowed = visible[rows]
        width = num_keys if allowed is None else allowed.shape[1]
        queries = query_states[:, rows].float().reshape(num_key_value_heads, groups * len(rows), head_dim)
        scores = torch.matmul(queries * scaling, keys[:, :, :width])
        scores = scores.reshape(num_key_value_heads, groups, len(rows), width)
        num_visible = torch.full_like(rows, num_keys)
        if allowed is not None:
            num_visible = allowed.sum(dim=-1)
            hidden = ~allowed
            scores = scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)  # a row may see nothing at all
            yield rows, scores.softmax(dim=-1).masked_fill_(hidden, 0.0), num_visible
        else:
            yield rows, scores.softmax(dim=-1), num_visible


def _row_entropy(probs: Tensor, num_visible: Tensor, head_reduction: str, normalize: bool) -> Tensor:
    """Returns the entropy of each row, `(rows,)`, from attention `(H_kv, G, rows, keys)`; 0 ln 0 is 0."""
    if head_reduction == "mean_attention":
        entropy: Tensor = torch.special.entr(probs.mean(dim=(0, 1))).sum(dim=-1)
    else:
        entropy = torch.special.entr(probs).sum(dim=-1).mean(dim=(0, 1))
    if normalize:
        entropy = entropy / num_visible.clamp(min=2).log()
    return entropy
