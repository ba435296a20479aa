"""Pictures show the numbers of the stats, and tokens where they are in the images."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from meda_cache import MedaCache, attach, plot_kept_tokens, plot_layers
from meda_cache.plots import compute_kept_share, split_by_image
from support.tiny_decoders import Family

plt: Any = pytest.importorskip("matplotlib.pyplot", reason='needs the extra "plots"')


@pytest.fixture(autouse=True)
def _off_screen() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def cache(llava: Family) -> MedaCache:
    """Keeps the first two tokens of every image, and nothing else of it."""

    def first_two(scores: torch.Tensor, visual_mask: torch.Tensor, budget: int) -> torch.Tensor:
        visual = visual_mask[0].nonzero().flatten()
        text = (~visual_mask[0]).nonzero().flatten()
        wanted = torch.cat([visual[:2], visual[16:18], text])[:budget].sort().values
        return wanted.expand(len(scores), -1)

    made = MedaCache(llava.model.config, preset="meda", allocation="uniform", keep_ratio=0.4, select=first_two)
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(2), past_key_values=made)
        made.compress()
    return made


def test_layers_are_bars_of_the_kept_tokens(cache: MedaCache) -> None:
    axes = plot_layers(cache.stats())
    layers = cache.stats().layers
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [layer.kept_text[0] for layer in layers] + [layer.kept_visual[0] for layer in layers]
    assert len(axes.figure.axes) == 1, "uniform layers have no entropy to draw"


def test_entropy_is_a_line_of_its_own(llava: Family) -> None:
    cache = MedaCache(llava.model.config, preset="meda")
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(2), past_key_values=cache)
        with pytest.raises(ValueError, match=r"see `cache\.compress`"):
            plot_layers(cache.stats())
        cache.compress()
    twin = plot_layers(cache.stats()).figure.axes[1]
    assert list(twin.lines[0].get_ydata()) == [layer.entropy[0] for layer in cache.stats().layers]


def test_kept_tokens_lie_where_they_are_in_the_image(cache: MedaCache) -> None:
    assert compute_kept_share(cache, 0).tolist() == [1.0, 1.0, *[0.0] * 14] * 2
    figure = plot_kept_tokens(cache, torch.zeros(2, 16, 16, 3).numpy())
    veil = figure.axes[1].images[1].get_alpha()
    assert veil.shape == (4, 4)
    assert veil.flatten().tolist() == pytest.approx([0, 0, *[0.85] * 14])


def test_images_of_different_size_have_their_own_tokens() -> None:
    share, runs = torch.arange(20.0), [4, 16]
    assert [part.tolist() for part in split_by_image(share, runs, 2)] == [list(range(4)), list(range(4, 20))]
    assert [len(part) for part in split_by_image(share, [20], 2)] == [10, 10], "no text between them"


def test_images_that_do_not_fit(cache: MedaCache) -> None:
    with pytest.raises(ValueError, match="32 visual tokens of the prompt evenly, got 3 images"):
        plot_kept_tokens(cache, torch.zeros(3, 16, 16, 3).numpy())
    with pytest.raises(ValueError, match="at most 16 tokens for image 0, got 5x4"):
        plot_kept_tokens(cache, torch.zeros(2, 16, 16, 3).numpy(), grids=[(5, 4), (4, 4)])
