"""The curve of seen against absent accuracy, drawn with matplotlib (extra `plots`)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from partial_tune.result import OperatingPoint, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_sweep(
    results: SweepResult | Mapping[str, SweepResult],
    points: Mapping[str, OperatingPoint] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Returns axes with the curve of one or several sweeps, their areas, and operating points.

    Args:
        results (`SweepResult` or `Mapping[str, SweepResult]`): one curve, or curves by name.
        points (`Mapping[str, OperatingPoint]`, *optional*): points to mark, by name.
        ax (`matplotlib.axes.Axes`, *optional*): where to draw; a new figure by default.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if a sweep has samples of one group only.

    Example:

    ```python
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import torch
    >>> from partial_tune import ClassPartition, plot_sweep, seen_absent_sweep
    >>> logits = torch.tensor([[3.0, 1.0], [2.0, 1.5], [1.0, 0.4]])
    >>> result = seen_absent_sweep(logits, torch.tensor([0, 1, 1]), ClassPartition(("ant", "bee"), seen=(0,)))
    >>> plot_sweep(result, {"no offset": result.at(0.0)}).get_xlabel()
    'accuracy on seen classes'

    ```
    """
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ImportError(
            '`plot_sweep` needs matplotlib; install it with `pip install "partial-tune[plots]"`.'
        ) from error
    named = {"": results} if isinstance(results, SweepResult) else dict(results)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 5), layout="constrained")
    for name, result in named.items():
        if result.ausuc is None:
            raise ValueError(
                f"Expected samples of seen and absent classes for the curve {name!r}, got one group only."
            )
        label = f"{name} (area {result.ausuc:.3f})".strip()
        ax.plot(result.curve["seen"], result.curve["absent"], label=label)
    for name, point in (points or {}).items():
        x, y = (np.nan if value is None else value for value in (point.seen, point.absent))
        ax.plot(x, y, "o", label=f"{name}: {point.gamma:.2f}")
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="accuracy on seen classes", ylabel="accuracy on absent classes")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax
