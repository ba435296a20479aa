"""From the predictions of several members to one target for each image (V-PET, arXiv 2503.09707, section 4).

All functions take the logits of K members on N images and C classes as one tensor `(K, N, C)` and compute in float64.
"""

from typing import Literal, get_args

import torch

Rule = Literal["mean_labels", "softmax_counts", "mean_logits", "mean_probs", "weighted", "dawid_skene"]


def vote_counts(logits: torch.Tensor) -> torch.Tensor:
    """How many members name each class.

    Args:
        logits: `(K, N, C)`. A member votes for its largest logit; among equal ones for the lowest class.

    Returns:
        int64 `(N, C)`, K in each row.

    Example:

    ```python
    >>> vote_counts(torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 1.0]]]))
    tensor([[1, 2]])

    ```
    """
    votes = logits.argmax(dim=-1)  # (K, N)
    return torch.nn.functional.one_hot(votes, logits.shape[-1]).sum(dim=0)


def aggregate(logits: torch.Tensor, rule: Rule = "mean_labels", weights: torch.Tensor | None = None) -> torch.Tensor:
    """One probability vector for each image, from all members.

    Args:
        logits: `(K, N, C)`.
        rule:
            - `"mean_labels"`: votes / K, the paper's "Mean Labels". Scales of logits play no part.
            - `"softmax_counts"`: the softmax of the vote counts, which the released code uses in its place. A
              unanimous vote of 4 gets 0.948 at 4 classes and 0.121 at 397.
            - `"mean_logits"`: the softmax of the mean logits.
            - `"mean_probs"`: the mean of the softmaxes.
            - `"weighted"`: votes with the given weights.
            - `"dawid_skene"`: the posterior of the Dawid-Skene model of the votes (see `dawid_skene`).
        weights: one weight for each member, at least 0 and not all 0; for `"weighted"` only.

    Returns:
        float64 `(N, C)`; rows sum to one.

    Raises:
        ValueError: logits of another shape or not finite, an unknown rule, or weights that do not fit.

    Example:

    ```python
    >>> logits = torch.tensor([[[9.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    >>> aggregate(logits, "mean_labels")
    tensor([[0.3333, 0.6667]], dtype=torch.float64)
    >>> aggregate(logits, "mean_logits")
    tensor([[0.9116, 0.0884]], dtype=torch.float64)

    ```
    """
    if logits.dim() != 3 or not logits.shape[0]:
        raise ValueError(f"expected logits of shape (members, images, classes), got {tuple(logits.shape)}")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if not torch.isfinite(logits).all():
        raise ValueError("expected finite logits; leave out the members that diverged")
    if (weights is not None) != (rule == "weighted"):
        raise ValueError(f"weights belong to rule='weighted', got rule={rule!r} and weights {weights}")
    logits = logits.double()
    counts = vote_counts(logits).double()
    if rule == "mean_labels":
        return counts / len(logits)
    if rule == "softmax_counts":
        return counts.softmax(dim=-1)
    if rule == "mean_logits":
        return logits.mean(dim=0).softmax(dim=-1)
    if rule == "mean_probs":
        return logits.softmax(dim=-1).mean(dim=0)
    if rule == "dawid_skene":
        return dawid_skene(logits.argmax(dim=-1), logits.shape[-1])
    assert weights is not None
    if weights.shape != logits.shape[:1] or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"expected {len(logits)} weights, at least 0 and not all 0, got {weights.tolist()}")
    votes = torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    return torch.einsum("k,knc->nc", weights.double() / weights.sum(), votes)


def dawid_skene(
    votes: torch.Tensor, num_classes: int, max_iterations: int = 100, tolerance: float = 1e-6
) -> torch.Tensor:
    """The posterior over true classes when each member has a confusion matrix of its own (Dawid and Skene, 1979).

    Expectation maximisation from the vote shares. One pseudo-count, spread by the vote shares of the classes, keeps a
    class that a member never meets from an undefined row.

    Args:
        votes: int64 `(K, N)`, the class that each member names.
        num_classes: C.
        max_iterations: of expectation maximisation.
        tolerance: largest change of a posterior at which it stops.

    Returns:
        float64 `(N, C)`; rows sum to one.

    Example:

    ```python
    >>> votes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]])
    >>> dawid_skene(votes, num_classes=2).argmax(dim=-1)
    tensor([0, 0, 1, 1])

    ```
    """
    one_hot = torch.nn.functional.one_hot(votes, num_classes).double()  # (K, N, C)
    posterior = one_hot.mean(dim=0)
    smoothing = one_hot.mean(dim=(0, 1))
    for _ in range(max_iterations):
        prior = posterior.mean(dim=0)
        confusion = torch.einsum("nt,knv->ktv", posterior, one_hot) + smoothing  # true class, vote
        confusion = confusion / confusion.sum(dim=-1, keepdim=True)
        log_likelihood = torch.einsum("knv,ktv->nt", one_hot, confusion.clamp_min(1e-12).log())
        updated = (prior.clamp_min(1e-12).log() + log_likelihood).softmax(dim=-1)
        change = (updated - posterior).abs().max()
        posterior = updated
        if change < tolerance:
            break
    return posterior


def break_ties(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The class of each image: the largest target; among equal ones the largest mean probability, then the lowest
    class.

    Args:
        targets: `(N, C)`, as from `aggregate`.
        logits: `(K, N, C)`, of the same members.

    Returns:
        int64 `(N,)`.

    Example:

    ```python
    >>> logits = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    >>> break_ties(aggregate(logits), logits)
    tensor([1])

    ```
    """
    mean_probs = logits.double().softmax(dim=-1).mean(dim=0)
    is_best = targets >= targets.max(dim=-1, keepdim=True).values - 1e-12
    return torch.where(is_best, mean_probs, -1.0).argmax(dim=-1)
