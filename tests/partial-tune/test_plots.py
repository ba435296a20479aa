"""The picture of the curve."""

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")

from partial_tune import ClassPartition, plot_sweep, seen_absent_sweep

PARTITION = ClassPartition(("ant", "bee"), (0,))


def test_curve_points_and_area_are_drawn() -> None:
    result = seen_absent_sweep(torch.tensor([[3.0, 1], [2, 1.5], [1, 0.4]]), torch.tensor([0, 1, 1]), PARTITION)
    axes = plot_sweep({"tuned": result}, {"no offset": result.at(0.0), "best": result.at(1.3)})
    curve, plain, best = axes.get_lines()
    assert curve.get_xdata().tolist() == result.curve["seen"].tolist()
    assert curve.get_ydata().tolist() == result.curve["absent"].tolist()
    assert (plain.get_xdata()[0], plain.get_ydata()[0]) == (1, 0)
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (1, 1)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["tuned (area 1.000)", "no offset: 0.00", "best: 1.30"]
    assert plot_sweep(result, ax=axes) is axes
    one_group = seen_absent_sweep(torch.tensor([[3.0, 1]]), torch.tensor([0]), PARTITION)
    with pytest.raises(ValueError, match="one group only"):
        plot_sweep(one_group)
