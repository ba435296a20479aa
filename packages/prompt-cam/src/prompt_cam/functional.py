"""The formulas of Prompt-CAM on plain tensors: no model, no files.

Shapes: B images, R heads, K choices of blurred heads, T tokens, d dimensions of a head.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

ScoreFn = Callable[[torch.Tensor], torch.Tensor]
"""From which heads are blurred, boolean `(B, K, R)`, to the class score of each choice, `(B, K)`."""

MAX_SHAPLEY_HEADS = 16
GAUSSIAN = (9, 1.7)
"""Side of the smoothing window in pixels, and the sigma that OpenCV derives from it, as in the released code."""


class GreedyRemoval(NamedTuple):
    """What greedy removal did: heads in order of removal, the score after each, and all candidates of each step."""

    order: torch.Tensor
    scores: torch.Tensor
    candidates: torch.Tensor


def blur_weights(num_tokens: int, patches: slice, blur: str = "patches") -> torch.Tensor:
    """Returns the attention of a blurred head: the same everywhere, so that it looks nowhere in particular.

    Args:
        num_tokens (`int`): length of the row, prompts included.
        patches (`slice`): which tokens are patches; what follows them is padding.
        blur (`str`, defaults to `"patches"`):
            `"patches"`: `1 / M` on each of the M patches, as in the paper (section 3.4). `"all_tokens"`: the same on
            all tokens, as in the released code, which sets the scores before the softmax to 0.

    Returns:
        `torch.Tensor` of shape `(num_tokens,)`, summing to 1

    Raises:
        ValueError: if `blur` is neither.

    Example:

    ```python
    >>> from prompt_cam import blur_weights
    >>> blur_weights(4, slice(2, 4)).tolist(), blur_weights(4, slice(2, 4), "all_tokens").tolist()
    ([0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25])

    ```
    """
    if blur not in ("patches", "all_tokens"):
        raise ValueError(f"`blur` must be 'patches' or 'all_tokens', got {blur!r}.")
    weights = torch.zeros(num_tokens)
    where = patches if blur == "patches" else slice(0, patches.stop)
    weights[where] = 1 / (where.stop - where.start)
    return weights


def patch_attention(attention: torch.Tensor, patches: slice, normalize: str | None = "patches") -> torch.Tensor:
    """Returns the part of attention rows that falls on patches, over the patches alone or as it is.

    Args:
        attention (`torch.Tensor` of shape `(..., T)`): rows after the softmax over all tokens.
        patches (`slice`): which tokens are patches.
        normalize (`str`, *optional*, defaults to `"patches"`):
            `"patches"`: each row sums to 1 over the patches, which is the softmax of the paper's notation. `None`: as
            the released code shows it; what fell on prompts and class token is missing from the sum.

    Returns:
        `torch.Tensor` of shape `(..., M)`

    Raises:
        ValueError: if `normalize` is neither.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import patch_attention
    >>> patch_attention(torch.tensor([0.5, 0.125, 0.375]), slice(1, 3)).tolist()
    [0.25, 0.75]

    ```
    """
    if normalize not in ("patches", None):
        raise ValueError(f"`normalize` must be 'patches' or None, got {normalize!r}.")
    rows = attention[..., patches]
    if normalize is None:
        return rows
    return rows / rows.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def remove_greedily(score_fn: ScoreFn, batch_size: int, num_heads: int) -> GreedyRemoval:
    """Returns the order in which blurring one more head costs the class score least (section 3.4).

    Each step blurs, for each image, the head whose blurring leaves the highest score; among equals the first. Only the
    row of one class changes, so an order by score is one by probability. Importance is the reverse of removal.

    Args:
        score_fn (`Callable`): from boolean `(B, K, R)`, true where a head is blurred, to scores `(B, K)`.
        batch_size (`int`): number of images.
        num_heads (`int`): number of heads.

    Returns:
        `GreedyRemoval`: order `(B, R)`, scores `(B, R)`, and candidates `(B, R, R)` by step and head, NaN for heads
        that were gone.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import remove_greedily
    >>> worth = torch.tensor([0.5, 2.0, 1.0])
    >>> remove_greedily(lambda blurred: -(blurred * worth).sum(-1), batch_size=1, num_heads=3).order.tolist()
    [[0, 2, 1]]

    ```
    """
    blurred = torch.zeros(batch_size, num_heads, dtype=torch.bool)
    eye = torch.eye(num_heads, dtype=torch.bool)
    order, scores, candidates = [], [], []
    for _ in range(num_heads):
        step = score_fn(blurred[:, None] | eye).cpu().masked_fill(blurred, -torch.inf)  # (B, R)
        best = step.max(dim=1, keepdim=True).values
        head = torch.where(step == best, torch.arange(num_heads), num_heads).min(dim=1).values
        order.append(head)
        scores.append(best[:, 0])
        candidates.append(step.masked_fill(blurred, torch.nan))
        blurred = blurred | eye[head]
    return GreedyRemoval(torch.stack(order, 1), torch.stack(scores, 1), torch.stack(candidates, 1))


def leave_one_out(score_fn: ScoreFn, batch_size: int, num_heads: int) -> torch.Tensor:
    """Returns how much the class score falls when one head alone is blurred.

    Args:
        score_fn, batch_size, num_heads: as in [`remove_greedily`].

    Returns:
        `torch.Tensor` of shape `(B, R)`

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import leave_one_out
    >>> worth = torch.tensor([0.5, 2.0])
    >>> leave_one_out(lambda blurred: -(blurred * worth).sum(-1), batch_size=1, num_heads=2).tolist()
    [[0.5, 2.0]]

    ```
    """
    choices = torch.cat([torch.zeros(1, num_heads, dtype=torch.bool), torch.eye(num_heads, dtype=torch.bool)])
    scores = score_fn(choices.expand(batch_size, -1, -1)).cpu()
    return scores[:, :1] - scores[:, 1:]


def shapley_values(score_fn: ScoreFn, batch_size: int, num_heads: int) -> torch.Tensor:
    """Returns the exact Shapley value of each head: its mean worth over all orders in which heads are unblurred.

    The values of an image add up to the score with all heads minus the score with none. All `2 ** R` choices are
    scored, which is cheap for single tokens up to about 12 heads.

    Args:
        score_fn, batch_size, num_heads: as in [`remove_greedily`].

    Returns:
        `torch.Tensor` of shape `(B, R)`

    Raises:
        ValueError: for more than 16 heads.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import shapley_values
    >>> either = lambda blurred: (~blurred).any(-1).float()  # one of two heads is enough
    >>> shapley_values(either, batch_size=1, num_heads=2).tolist()
    [[0.5, 0.5]]

    ```
    """
    if num_heads > MAX_SHAPLEY_HEADS:
        raise ValueError(
            f"Exact Shapley values need 2**R scores, for at most {MAX_SHAPLEY_HEADS} heads, got {num_heads}; use "
            "ranking='greedy'."
        )
    kept = torch.tensor(list(itertools.product([False, True], repeat=num_heads)))  # (2**R, R), binary counting
    scores = score_fn((~kept).expand(batch_size, -1, -1)).cpu().double()
    sizes = kept.sum(dim=1)
    weight = torch.tensor([1 / (num_heads * math.comb(num_heads - 1, size)) for size in range(num_heads)]).double()
    values = []
    for head in range(num_heads):
        without = torch.nonzero(~kept[:, head])[:, 0]
        with_it = without + 2 ** (num_heads - 1 - head)
        values.append(((scores[:, with_it] - scores[:, without]) * weight[sizes[without]]).sum(dim=1))
    return torch.stack(values, dim=1).float()


def count_traits(removal_scores: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Returns how many heads are left just before the class stops winning, the paper's stopping point (section 3.4).

    Args:
        removal_scores (`torch.Tensor` of shape `(B, R)`): class score after each removal.
        others (`torch.Tensor` of shape `(B,)`): highest score of another class, which blurring does not change.

    Returns:
        `torch.Tensor` of shape `(B,)`: from 0 (the class wins with all heads blurred) to R (it loses with the first).

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import count_traits
    >>> count_traits(torch.tensor([[3.0, 2.0, 0.5]]), torch.tensor([1.0])).tolist()
    [1]

    ```
    """
    loses = removal_scores <= others[:, None]
    first = torch.where(loses.any(dim=1), loses.int().argmax(dim=1), removal_scores.shape[1])
    return removal_scores.shape[1] - first


def aggregate_heads(maps: torch.Tensor, order: torch.Tensor, top_heads: int = 4) -> torch.Tensor:
    """Returns one map for each image: the sum of its most important heads, to rank pixels for insertion and deletion.

    Args:
        maps (`torch.Tensor` of shape `(B, R, rows, columns)`): one map for each head.
        order (`torch.Tensor` of shape `(B, R)`): heads, the most important first.
        top_heads (`int`, defaults to 4): how many of them to add up; 4 is what the released code shows.

    Returns:
        `torch.Tensor` of shape `(B, rows, columns)`

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import aggregate_heads
    >>> maps = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    >>> aggregate_heads(maps, torch.tensor([[2, 0, 1]]), top_heads=2).tolist()
    [[[101.0]]]

    ```
    """
    chosen = order[:, :top_heads].to(maps.device)
    return torch.gather(maps, 1, chosen[..., None, None].expand(-1, -1, *maps.shape[2:])).sum(dim=1)


def smooth_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Returns maps in [0, 1] at the size of an image: stretched, resized (bicubic) and smoothed, as published.

    Args:
        maps (`torch.Tensor` of shape `(B, R, rows, columns)`): one map for each head.
        size (`tuple[int, int]`): height and width in pixels.

    Returns:
        `torch.Tensor` of shape `(B, R, height, width)`; a map without any contrast is 0 everywhere.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import smooth_maps
    >>> smooth_maps(torch.rand(1, 3, 4, 4), size=(32, 32)).shape
    torch.Size([1, 3, 32, 32])

    ```
    """
    maps = nn.functional.interpolate(_stretch(maps.float()), size=size, mode="bicubic", align_corners=False)
    side, sigma = GAUSSIAN
    axis = torch.arange(side, device=maps.device) - side // 2
    window = torch.exp(-(axis**2) / (2 * sigma**2))
    window = window / window.sum()
    flat = nn.functional.pad(maps.flatten(0, 1)[:, None], (side // 2,) * 4, mode="replicate")
    flat = nn.functional.conv2d(nn.functional.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return _stretch(flat.view_as(maps))


def _stretch(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)
