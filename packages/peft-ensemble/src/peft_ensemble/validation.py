"""Combinations of members that are fitted on held-out labelled images: temperatures, weights, greedy selection.

All take the logits of K members on N images and C classes as one tensor `(K, N, C)`, and compute in float64.
"""

import torch

TEMPERATURES = torch.logspace(-1.5, 2, 351, dtype=torch.float64)  # 0.03 to 100


def fit_temperatures(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The temperature of each member that gives its probabilities the least cross-entropy (arXiv 1706.04599).

    Args:
        logits: `(K, N, C)`.
        labels: int64 `(N,)`.

    Returns:
        float64 `(K,)`, from 351 values between 0.03 and 100.

    Example:

    ```python
    >>> logits = torch.tensor([[[20.0, 0.0], [20.0, 0.0], [20.0, 0.0]]])  # sure, and right two times of three
    >>> round(float(20 / fit_temperatures(logits, torch.tensor([0, 0, 1]))), 1)  # the logit of 2/3 is 0.7
    0.7

    ```
    """
    logits = logits.double()
    target = labels.expand(logits.shape[:2])[..., None]
    losses = [-(logits / value).log_softmax(dim=-1).gather(-1, target).mean(dim=(1, 2)) for value in TEMPERATURES]
    return TEMPERATURES[torch.stack(losses).argmin(dim=0)]


def select_greedily(probabilities: torch.Tensor, labels: torch.Tensor, num_rounds: int = 20) -> torch.Tensor:
    """How often each member is in the ensemble that grows by the best addition, with replacement (Caruana et al.,
    2004).

    Args:
        probabilities: `(K, N, C)`.
        labels: int64 `(N,)`.
        num_rounds: additions. The best prefix of them counts, the shortest of equals.

    Returns:
        float64 `(K,)`, weights that sum to one. Among equally accurate additions the one of the smaller cross-entropy
        is taken, then the first.

    Example:

    ```python
    >>> right, wrong = torch.eye(2), torch.eye(2).flip(0)
    >>> select_greedily(torch.stack([wrong, right]), torch.arange(2))
    tensor([0., 1.], dtype=torch.float64)

    ```
    """
    probabilities = probabilities.double()
    counts = torch.zeros(len(probabilities), dtype=torch.float64)
    total = torch.zeros_like(probabilities[0])
    best: tuple[float, torch.Tensor] | None = None
    rows = torch.arange(len(labels))
    for number in range(1, num_rounds + 1):
        means = (total + probabilities) / number  # (K, N, C)
        accuracies = (means.argmax(dim=-1) == labels).double().mean(dim=-1).tolist()
        losses = (-means[:, rows, labels].clamp_min(1e-12).log().mean(dim=-1)).tolist()
        chosen = min(range(len(counts)), key=lambda index: (-accuracies[index], losses[index], index))
        counts[chosen] += 1
        total = total + probabilities[chosen]
        if best is None or accuracies[chosen] > best[0]:
            best = (accuracies[chosen], counts / number)
    assert best is not None
    return best[1]


def combine_fitted(
    logits: torch.Tensor, held_out: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Calibrated probabilities of members, and what three fitted combinations of them say.

    Args:
        logits: `(K, N, C)`.
        held_out: `(K, M, C)`, logits of the same members on other images.
        labels: int64 `(M,)`, of those.

    Returns:
        Probabilities `(K, N, C)` at the fitted temperatures, and targets `(N, C)`: `calibrated_probs`, their mean;
        `weighted_probs`, with the held-out accuracies as weights; `greedy`, with those of `select_greedily`.

    Example:

    ```python
    >>> logits, labels = 5 * torch.eye(3).expand(2, 3, 3), torch.arange(3)
    >>> {name: float(target[0].argmax()) for name, target in combine_fitted(logits, logits, labels)[1].items()}
    {'calibrated_probs': 0.0, 'weighted_probs': 0.0, 'greedy': 0.0}

    ```
    """
    temperatures = fit_temperatures(held_out, labels)[:, None, None]
    calibrated = (logits.double() / temperatures).softmax(dim=-1)
    known = (held_out.double() / temperatures).softmax(dim=-1)
    accuracies = (held_out.argmax(dim=-1) == labels).double().mean(dim=-1)
    weights = {
        "calibrated_probs": torch.ones(len(logits), dtype=torch.float64),
        "weighted_probs": accuracies if accuracies.sum() > 0 else torch.ones_like(accuracies),
        "greedy": select_greedily(known, labels),
    }
    means = {name: torch.einsum("k,knc->nc", weight / weight.sum(), calibrated) for name, weight in weights.items()}
    return calibrated, means
