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
    shares = weights.detach().to("cpu", torch.float64)
    if shares.ndim != 1 or not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()) or shares.sum() == 0:
        raise ValueError(
            f"Expected `weights` of shape (num_layers,), finite, >= 0, not all 0, got {weights.tolist()}."
        )
    low, high = (torch.as_tensor(bound, dtype=torch.float64).expand(shares.shape) for bound in (minimum, maximum))
    if not bool(((low >= 0) & (low <= high)).all()):
        raise ValueError(f"Expected 0 <= minimum <= maximum, got minimum={minimum} and maximum={maximum}.")
    total = min(max(total, int(low.sum())), int(high.sum()))
    shares = (shares / shares.max()).clamp(min=1e-250)
    below, above = -25.0, math.log(max(float(high.max()), 1.0)) + 600.0
    for _ in range(200):  # bisection for ln(s); the sum grows with s
        middle = (below + above) / 2
        if (math.exp(middle) * shares).clamp(low, high).sum() < total:
            below = middle
        else:
            above = middle
    budgets = (math.exp(above) * shares).clamp(low, high)
    rounded = (budgets + 1e-9).floor()
    remainder = budgets - rounded
    remainder[rounded >= high] = -1.0
    order = torch.argsort(remainder, descending=True, stable=True)
    rounded[order[: total - int(rounded.sum())]] += 1
    return [int(budget) for budget in rounded]
