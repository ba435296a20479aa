"""Figures of reports. Needs matplotlib: `pip install "peft-ensemble[plots]"`."""

from collections.abc import Sequence
from typing import Any

from .diversity import DiversityReport
from .selection import Selection


def _axes() -> Any:
    """New axes, on a canvas that needs no display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "peft-ensemble[plots]"') from error
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def plot_agreement(report: DiversityReport, ax: Any = None) -> Any:
    """The matrix of agreement between members, as a figure's axes.

    Args:
        report: of `measure_diversity` or `PeftEnsemble.diversity`.
        ax: matplotlib axes to draw on; new ones by default, whose `figure.savefig` writes a file.

    Example:

    ```python
    >>> import torch
    >>> from peft_ensemble import measure_diversity
    >>> logits = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    >>> report = measure_diversity(logits, torch.zeros(20, dtype=torch.long), ["a", "b"])
    >>> [label.get_text() for label in plot_agreement(report).get_xticklabels()]
    ['a', 'b']

    ```
    """
    ax = ax or _axes()
    picture = ax.imshow(report.agreement, vmin=0, vmax=1, cmap="viridis")
    numbers = range(len(report.names))
    ax.set_xticks(numbers, report.names, rotation=30, ha="right")
    ax.set_yticks(numbers, report.names)
    for row in numbers:
        for column in numbers:
            value = report.agreement[row][column]
            color = "black" if value > 0.6 else "white"
            ax.text(column, row, f"{value:.0%}", ha="center", va="center", color=color)
    ax.set_title("share of equal predictions")
    ax.figure.colorbar(picture, ax=ax)
    return ax


def plot_wise(curve: Sequence[dict[str, float]], x: str, y: str, ax: Any = None) -> Any:
    """A curve of `wise_curve` in the plane of two of its numbers, with alpha written at the points.

    Args:
        curve: rows of `wise_curve`.
        x, y: names of two numbers in each row, such as accuracy on the target and on a shifted domain.
        ax: as for `plot_agreement`.

    Example:

    ```python
    >>> rows = [{"alpha": 0.0, "target": 0.5, "shifted": 0.6}, {"alpha": 1.0, "target": 0.8, "shifted": 0.5}]
    >>> plot_wise(rows, "target", "shifted").get_xlabel()
    'target'

    ```
    """
    missing = [name for name in (x, y) if any(name not in row for row in curve)]
    if missing or not curve:
        raise ValueError(f"expected rows with {x!r} and {y!r}, got {[sorted(row) for row in curve]}")
    ax = ax or _axes()
    ax.plot([row[x] for row in curve], [row[y] for row in curve], marker="o")
    for row in curve:
        ax.annotate(f"{row['alpha']:g}", (row[x], row[y]), textcoords="offset points", xytext=(4, 4))
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title("from pre-trained (0) to tuned (1)")
    return ax


def plot_selection(selection: Selection, accuracies: Sequence[float], names: Sequence[str], ax: Any = None) -> Any:
    """The accuracy of each candidate, with the selected one, the best and the mean marked.

    Args:
        selection: of `UnsupervisedSelector.select`.
        accuracies: true accuracy of each candidate, known afterwards.
        names: of the candidates.
        ax: as for `plot_agreement`.

    Example:

    ```python
    >>> from peft_ensemble import UnsupervisedSelector
    >>> selection = UnsupervisedSelector(metrics=("ami",)).select([{"ami": 0.2}, {"ami": 0.7}])
    >>> plot_selection(selection, [0.9, 0.8], ["lr 1e-3", "lr 1e-4"]).get_title()
    'regret 10.0 points (random choice: 5.0)'

    ```
    """
    if not len(accuracies) == len(names) == len(selection.scores):
        raise ValueError(f"expected {len(selection.scores)} accuracies and names, got {len(accuracies)}, {len(names)}")
    ax = ax or _axes()
    regret = selection.regret(list(accuracies))
    colors = ["#e0912f" if index == selection.index else "#9aa5b1" for index in range(len(names))]
    ax.barh(list(names), list(accuracies), color=colors)
    ax.axvline(regret["oracle"], color="black", label="best")
    ax.axvline(regret["random"], color="black", linestyle=":", label="mean")
    ax.set_xlabel("accuracy (selected in colour)")
    ax.set_title(f"regret {100 * regret['regret']:.1f} points (random choice: {100 * regret['random_regret']:.1f})")
    ax.legend()
    return ax
