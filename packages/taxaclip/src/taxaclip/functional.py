"""Probabilities of every rank from one softmax: tensors in, tensors out.

Taxa are sorted by path, so that a clade of any rank is an interval of rows, `[offsets[g], offsets[g + 1])`, and its
probability the sum over that interval (BioCLIP 2 does the same sum over a dictionary of names).
"""

from collections.abc import Sequence

import numpy as np
import torch

from taxaclip.taxonomy import RANKS


def rank_offsets(names: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
    """Returns where the groups of each rank begin, and where the last one ends.

    A group is a prefix of the path and not a name: genera of one name in two families are two groups.

    Args:
        names (sequence of sequences of seven `str`): the paths, sorted.

    Returns:
        `dict` from rank to `torch.Tensor` of shape `(num_groups + 1,)`, int64.

    Raises:
        ValueError: if the paths are not sorted.

    Example:

    ```python
    >>> from taxaclip.functional import rank_offsets
    >>> paths = [("A", "", "", "", "", "", "x"), ("A", "", "", "", "", "", "y"), ("B", "", "", "", "", "", "x")]
    >>> rank_offsets(paths)["kingdom"]
    tensor([0, 2, 3])

    ```
    """
    table = np.array([tuple(path) for path in names], dtype=object).reshape(-1, len(RANKS))
    changed = np.zeros(len(table), dtype=bool)
    changed[:1] = True
    offsets = {}
    for column, rank in enumerate(RANKS):
        previous, current = table[:-1, column], table[1:, column]
        if bool(((current < previous) & ~changed[1:]).any()):
            raise ValueError(
                "Expected paths sorted from the kingdom on, unknown names first; sort them by `sort_taxa`."
            )
        changed[1:] |= previous != current
        offsets[rank] = torch.from_numpy(np.append(np.flatnonzero(changed), len(table)))
    return offsets


def group_sums(probs: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Returns the probability of each group.

    Args:
        probs (`torch.Tensor` of shape `(batch_size, num_taxa)`): probabilities of the sorted taxa.
        offsets (`torch.Tensor` of shape `(num_groups + 1,)`): where the groups begin, as of `rank_offsets`.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_groups)`.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.functional import group_sums
    >>> group_sums(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([0, 2, 3]))
    tensor([[0.7500, 0.2500]])

    ```
    """
    sizes = offsets.diff()
    group = torch.repeat_interleave(torch.arange(len(sizes), device=probs.device), sizes.to(probs.device))
    return probs.new_zeros(len(probs), len(sizes)).index_add_(1, group, probs)


def rank_sums(probs: torch.Tensor, offsets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the probability of each group at every rank; a parent is the exact sum of its children.

    Args:
        probs (`torch.Tensor` of shape `(batch_size, num_taxa)`): probabilities of the sorted taxa.
        offsets (`dict`): of `rank_offsets`.

    Returns:
        `dict` from rank to `torch.Tensor` of shape `(batch_size, num_groups)`.
    """
    sums: dict[str, torch.Tensor] = {}
    below, children = probs, torch.arange(probs.shape[1] + 1)
    for rank in reversed(RANKS):
        if len(offsets[rank]) == len(children):  # a group of one each: nothing to add up
            sums[rank] = below
            continue
        # Groups of this rank in terms of groups of the rank below, which are far fewer than taxa.
        below = group_sums(below, torch.searchsorted(children, offsets[rank].cpu()))
        children = offsets[rank].cpu()
        sums[rank] = below
    return {rank: sums[rank] for rank in RANKS}


def top_k(probs: torch.Tensor, k: int) -> torch.Tensor:
    """Returns the numbers of the largest probabilities, the largest first, ties by number.

    Args:
        probs (`torch.Tensor` of shape `(num_groups,)`): probabilities.
        k (`int`): how many; all if there are fewer.

    Returns:
        `torch.Tensor` of shape `(min(k, num_groups),)`, int64.

    Example:

    ```python
    >>> import torch
    >>> from taxaclip.functional import top_k
    >>> top_k(torch.tensor([0.2, 0.3, 0.2, 0.3]), 3)
    tensor([1, 3, 0])

    ```
    """
    k = min(k, len(probs))
    candidates = torch.nonzero(probs >= probs.topk(k).values[-1]).flatten()
    return candidates[torch.argsort(probs[candidates], descending=True, stable=True)[:k]]


def greedy_path(sums: dict[str, torch.Tensor], offsets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the group at each rank that a walk from the root reaches by always taking the likeliest child.

    Unlike the likeliest group of each rank by itself, these never contradict each other; probabilities fall along it.

    Args:
        sums (`dict`): of `rank_sums`.
        offsets (`dict`): of `rank_offsets`.

    Returns:
        `torch.Tensor` of shape `(batch_size, 7)`, int64: the group's number at each rank. Ties go to the first group.
    """
    batch_size = len(sums[RANKS[0]])
    low = torch.zeros(batch_size, dtype=torch.long)
    high = torch.full((batch_size,), int(offsets[RANKS[0]][-1]))
    path = []
    for rank in RANKS:
        starts = offsets[rank].cpu()
        first, last = torch.searchsorted(starts, low), torch.searchsorted(starts, high)
        number = torch.arange(sums[rank].shape[1])
        inside = (number >= first[:, None]) & (number < last[:, None])
        group = sums[rank].cpu().masked_fill(~inside, -1).argmax(dim=1)
        path.append(group)
        low, high = starts[group], starts[group + 1]
    return torch.stack(path, dim=1)
