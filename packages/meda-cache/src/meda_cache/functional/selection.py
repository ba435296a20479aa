"""Which tokens a layer keeps."""

from typing import Literal

import torch
from torch import Tensor

TextPolicy = Literal["bias", "protect", "none"]


def select_tokens(
    scores: Tensor,
    visual_mask: Tensor,
    *,
    num_recent: int,
    num_important: int,
    text_policy: TextPolicy = "bias",
    num_sinks: int = 0,
) -> Tensor:
    """Returns the positions that each head keeps: the first, the last, and the best of those between.

    LOOK-M (arXiv 2406.18139) and MEDA keep the last tokens and, of the others, those with the largest scores, after
    the scores of text have been raised by the maximum over all tokens, so that any text comes before any image. Text
    first is done here by comparing (is text, score) pairs, which no precision can spoil.

    Args:
        scores (`torch.Tensor` of shape `(num_key_value_heads, seq_len)`):
            Higher is kept. Ties go to the lower position.
        visual_mask (`torch.Tensor` of shape `(seq_len,)` or that of `scores`, bool): True where the token is visual.
        num_recent (`int`): number of last positions that are kept.
        num_important (`int`): number of positions kept by score.
        text_policy (`"bias"`, `"protect"` or `"none"`, *optional*, defaults to `"bias"`):
            `"bias"` ranks any text before any visual token (the text prior). `"protect"` keeps text before anything
            else, the last positions included. `"none"` goes by score alone.
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
    position = torch.arange(seq_len, device=scores.device)
    is_text = ~visual_mask.expand_as(scores)
    rank = torch.zeros_like(scores, dtype=torch.int64)  # the higher rank goes first, and within a rank the score
    rank[:, seq_len - num_recent :] = 2
    if text_policy == "bias":
        rank = torch.where(is_text, rank.clamp(min=1), rank)
    elif text_policy == "protect":
        rank = torch.where(is_text, 3, rank)
    rank[:, :num_sinks] = 4
    order = torch.argsort(scores.float(), dim=-1, descending=True, stable=True)
    if text_policy == "protect":  # where text leaves no room for all of the last positions, the very last ones stay
        lateness = torch.where(rank == 2, position, -1).gather(-1, order)
        order = order.gather(-1, torch.argsort(lateness, dim=-1, descending=True, stable=True))
    order = order.gather(-1, torch.argsort(rank.gather(-1, order), dim=-1, descending=True, stable=True))
    return order[:, :num_kept].sort(dim=-1).values.reshape(num_heads, num_kept)
