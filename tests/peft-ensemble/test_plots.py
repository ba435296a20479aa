"""Figures hold what the report holds."""

import sys

import pytest
import torch

from peft_ensemble import UnsupervisedSelector, measure_diversity
from peft_ensemble.plots import plot_agreement, plot_selection, plot_wise


@pytest.fixture
def report():
    logits = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(0))
    return measure_diversity(logits, torch.zeros(40, dtype=torch.long), ["a", "b", "c"])


def test_agreement_is_written_in_each_cell(report, tmp_path):
    ax = plot_agreement(report)
    texts = [text.get_text() for text in ax.texts]
    assert texts == [f"{value:.0%}" for row in report.agreement for value in row]
    ax.figure.savefig(tmp_path / "agreement.png")
    assert (tmp_path / "agreement.png").stat().st_size > 1000


def test_wise_curve_is_drawn_in_order():
    curve = [{"alpha": alpha, "target": alpha, "shifted": 1 - alpha} for alpha in (0.0, 0.5, 1.0)]
    (line,) = plot_wise(curve, "target", "shifted").get_lines()
    assert list(line.get_xdata()) == [0, 0.5, 1]
    assert list(line.get_ydata()) == [1, 0.5, 0]
    with pytest.raises(ValueError, match="expected rows with 'target' and 'other'"):
        plot_wise(curve, "target", "other")


def test_selection_marks_the_choice():
    selection = UnsupervisedSelector(metrics=("ami",)).select([{"ami": 0.2}, {"ami": 0.7}, {"ami": 0.1}])
    ax = plot_selection(selection, [0.9, 0.8, 0.1], ["x", "y", "z"])
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] == colors[2] != colors[1]
    assert ax.get_title() == "regret 10.0 points (random choice: 30.0)"
    with pytest.raises(ValueError, match="expected 3 accuracies and names, got 1, 3"):
        plot_selection(selection, [0.9], ["x", "y", "z"])


def test_missing_matplotlib_names_the_extra(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "peft-ensemble\[plots\]"'):
        plot_agreement(report)
