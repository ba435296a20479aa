import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

from taxaclip import VariationGeometry

mpl.use("Agg")
plots = pytest.importorskip("taxaclip.plots")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plots.plt.close("all")


def test_panels_show_what_lies_inside_and_across_the_species() -> None:
    species, variants = torch.arange(40) % 4, torch.arange(40) // 4 % 2
    means = torch.zeros(4, 6)
    means[:, 0], means[:, 1] = torch.tensor([-6.0, -2, 2, 6]), torch.tensor([1.0, -1, -1, 1])
    x = means[species]
    x[:, 5] = 0.5 * (variants * 2 - 1)  # across all differences between species
    figure = plots.plot_variation(x, species, variants)
    left, right = figure.axes
    points = [np.asarray(axis.collections[k].get_offsets()) for axis in (left, right) for k in (0, 1)]
    assert sorted({round(abs(float(value)), 3) for value in points[0][:, 0]}) == [2, 6]
    assert points[0] == pytest.approx(points[1])  # variants coincide to the left
    assert points[3][:, 1] - points[2][:, 1] == pytest.approx(float(points[3][0, 1] - points[2][0, 1]))
    assert abs(points[3][0, 1] - points[2][0, 1]) == pytest.approx(1)


def test_traits_have_a_panel_each() -> None:
    figure = plots.plot_traits(torch.randn(5, 4), {"water": ["a", "b", "a", "b", "c"], "size": [1.0, 2, 3, 4, 5]})
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert figure.axes[1].collections[0].get_array().tolist() == [1, 2, 3, 4, 5]


def test_scaling_shows_measured_and_chance(tmp_path: Path) -> None:
    results = [VariationGeometry(ratio, 0.1, 0.01, [ratio, 3 * ratio], 60.0) for ratio in (0.4, 0.2)]
    figure = plots.plot_scaling([1000, 4000], results)
    measured, chance = figure.axes[0].lines
    assert list(measured.get_ydata()) == [0.4, 0.2]
    assert list(chance.get_ydata()) == [0.1, 0.1]
    assert list(figure.axes[1].lines[0].get_ydata()) == pytest.approx([0.8, 0.4])
    figure.savefig(tmp_path / "scaling.png")


def test_wrong_arguments_are_refused() -> None:
    x = torch.randn(4, 3)
    for call in (
        lambda: plots.plot_variation(x, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])),
        lambda: plots.plot_variation(x, torch.zeros(3), torch.zeros(3)),
        lambda: plots.plot_variation(x, torch.tensor([0, 0, 2, 3]), torch.tensor([0, 1, 0, 1])),
        lambda: plots.plot_traits(x, {}),
        lambda: plots.plot_traits(x, {"size": [1.0, 2, 3, 4]}, method="tsne"),
        lambda: plots.plot_traits(x[:3], {"size": [1.0, 2, 3]}, method="umap"),
        lambda: plots.plot_traits(x, {"size": [1.0]}),
        lambda: plots.plot_scaling([1], []),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()


def test_umap_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"taxaclip\[umap\]"):
        plots.plot_traits(torch.randn(5, 3), {"size": [1.0, 2, 3, 4, 5]}, method="umap")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:numba", "ignore::FutureWarning:sklearn")
def test_umap_keeps_neighbours_together_and_is_seeded() -> None:
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(40) // 20
    x = torch.randn(40, 8, generator=generator) + 20 * group[:, None]
    points = []
    for _ in range(2):
        figure = plots.plot_traits(x, {"group": group.tolist()}, method="umap")
        points.append(np.asarray(figure.axes[0].collections[0].get_offsets()))
    assert np.array_equal(points[0], points[1])
    centres = [points[0][group == number].mean(axis=0) for number in (0, 1)]
    spread = max(np.linalg.norm(points[0][group == n] - centres[n], axis=1).max() for n in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > spread
