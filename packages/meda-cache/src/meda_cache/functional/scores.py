"""From the mass of keys to scores of tokens."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

WINDOW_KERNEL = 5
"""Width of the average over neighbours in SnapKV (arXiv 2404.14469, section 4)."""


def pool_window_mass(mass: Tensor, window_size: int) -> Tensor:
    """Returns SnapKV's scores from the mass `(num_heads, seq_len)` that keys get from the last `window_size` queries.

    The mass is averaged over five neighbours, and the window itself goes before everything else.
    """
    before = mass[:, : mass.shape[1] - window_size]
    pooled = avg_pool1d(before, WINDOW_KERNEL, stride=1, padding=WINDOW_KERNEL // 2) if before.shape[1] else before
    highest = pooled.amax(dim=-1, keepdim=True) if before.shape[1] else mass.new_zeros(len(mass), 1)
    return torch.cat([pooled, highest.expand(-1, mass.shape[1] - before.shape[1]) + 1], dim=-1)


def rank_within_images(scores: Tensor, image_index: Tensor) -> Tensor:
    """Returns scores that take from every image its best tokens first: all best ones, then all second ones, and so on.

    Images of different size give in proportion to it. Text counts as one more image.

    Args:
        scores (`torch.Tensor` of shape `(num_heads, seq_len)`): higher is better.
        image_index (`torch.Tensor` of shape `(num_heads, seq_len)`, int64): number of the image, -1 for text.

    Returns:
        `torch.Tensor` of the shape of `scores`, float32: minus the place of each token in that order.
    """
    by_score = torch.argsort(scores, dim=-1, descending=True, stable=True)
    group = image_index.expand_as(scores).gather(-1, by_score) + 1
    by_group = torch.argsort(group, dim=-1, stable=True)
    group = group.gather(-1, by_group)
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(group)
    size = torch.zeros_like(group).scatter_add(-1, group, torch.ones_like(group)) if scores.shape[1] else group
    start = size.cumsum(dim=-1) - size
    share = (place - start.gather(-1, group) + 0.5) / size.gather(-1, group)
    share = torch.empty_like(share).scatter(-1, by_group, share)  # in the order of the scores again: it breaks ties
    order = by_score.gather(-1, torch.argsort(share, dim=-1, stable=True))
    return torch.empty_like(share).scatter(-1, order, -place.to(share.dtype))
