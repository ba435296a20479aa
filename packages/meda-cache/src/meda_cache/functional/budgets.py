"""How many tokens each layer keeps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def allocate_budgets(
    weights: Tensor, total: int, *, minimum: int | Sequence[int] = 1, maximum: int | Sequence[int]
) -> list[int]:
    """Returns how many tokens each layer keeps: in proportion to its weight, within bounds, adding up exactly.

    MEDA gives layer `l` the share `softmax(entropy)_l` of the whole budget (arXiv 2502.17599, section 3.2). The paper
    has no bounds and its code clamps without giving the rest to others, so that budget is lost or overspent. Here
    `s * weights` is clipped to `[minimum, maximum]` with the one `s` that makes the sum right, and rounded by largest
    remainders, ties to the lower layer. Where no bound is active this is the paper's formula.

    Args:
        weights (`torch.Tensor` of shape `(num_layers,)`): positive; only their ratios matter.
        total (`int`): tokens over all layers; brought within the sums of the bounds first.
        minimum (`int` or one for each layer, *optional*, defaults to 1): least number of tokens of a layer.
        maximum (`int` or one for each layer): largest number of tokens of a layer: the length of the prompt.

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
    shares = weights.detach().to("cpu", torch.float64).tolist()
    if weights.ndim != 1 or not all(0 <= share < math.inf for share in shares) or sum(shares) == 0:
        raise ValueError(
            f"Expected `weights` of shape (num_layers,), finite, >= 0, not all 0, got {weights.tolist()}."
        )
    lows, highs = ([b] * len(shares) if isinstance(b, int) else list(b) for b in (minimum, maximum))
    if not all(0 <= low <= high for low, high in zip(lows, highs, strict=True)):
        raise ValueError(f"Expected 0 <= minimum <= maximum, got minimum={minimum} and maximum={maximum}.")
    total = min(max(total, sum(lows)), sum(highs))
    largest = max(shares)
    bounded = [(max(share / largest, 1e-250), low, high) for share, low, high in zip(shares, lows, highs, strict=True)]

    def scale(log_factor: float) -> list[float]:
        factor = math.exp(log_factor)
        return [min(max(factor * share, low), high) for share, low, high in bounded]

    below, above = -25.0, math.log(max(*highs, 1)) + 600.0
    for _ in range(100):  # bisection for the logarithm of the factor; the sum grows with it
        middle = (below + above) / 2
        if sum(scale(middle)) < total:
            below = middle
        else:
            above = middle
    real = scale(above)
    budgets = [math.floor(budget + 1e-9) for budget in real]
    remainders = [-1.0 if n >= high else b - n for b, n, high in zip(real, budgets, highs, strict=True)]
    order = sorted(range(len(budgets)), key=lambda layer: -remainders[layer])  # stable: ties to the lower layer
    for layer in order[: total - sum(budgets)]:
        budgets[layer] += 1
    return budgets
