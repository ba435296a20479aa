"""Formulas against float64 loops that follow the papers, and what must hold for any map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from finer_cam import combine, normalize_maps, upsample_maps
from finer_cam.functional import GRADIENT_METHODS, clip_outliers, compute_maps
from support.slow_cams import slow_finer_map, slow_map

SEEDS = st.integers(0, 2**16)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@given(seed=SEEDS)
def test_base_maps_equal_loops(method: str, seed: int) -> None:
    activations, gradients = draw(seed, 2, 3, 2, 5).abs(), draw(seed + 1, 2, 3, 2, 5)
    gradients[0, 0] = 0
    expected = torch.tensor([slow_map(*pair, method) for pair in zip(activations, gradients, strict=True)])
    torch.testing.assert_close(compute_maps(activations, gradients, method), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@given(seed=SEEDS, gamma=st.floats(0, 2))
def test_finer_maps_equal_loops(method: str, seed: int, gamma: float) -> None:
    activations, gradients = draw(seed, 2, 3, 2, 4).abs(), draw(seed + 1, 2, 5, 3, 2, 4)
    target, references = torch.tensor([4, 1]), torch.tensor([[0, 2, 3], [2, -1, 0]])
    expected = [
        slow_finer_map(activations[i], gradients[i], int(target[i]), [d for d in row if d >= 0], gamma, method)
        for i, row in enumerate(references.tolist())
    ]
    ours = combine(activations, gradients, target, references, gamma=gamma, method=method)
    torch.testing.assert_close(ours, torch.tensor(expected).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_gradient_that_is_equal_everywhere_may_be_given_once(method: str) -> None:
    activations, gradients = draw(0, 2, 3, 4, 5).abs(), draw(1, 2, 3, 1, 1)
    whole = compute_maps(activations, gradients.expand(-1, -1, 4, 5).contiguous(), method)
    torch.testing.assert_close(compute_maps(activations, gradients, method), whole)


def test_maps_are_not_subtracted_after_the_relu() -> None:
    activations = torch.tensor([[[[1.0, 1.0]]]])
    gradients = torch.tensor([[[[[1.0, -1.0]]], [[[0.5, -3.0]]]]])
    ours = combine(activations, gradients, torch.tensor([0]), torch.tensor([[1]]), gamma=1.0, method="hirescam")
    assert ours.tolist() == [[[0.5, 2.0]]]  # the difference of finished maps would be [0.5, 0]


@given(seed=SEEDS, factor=st.floats(0.01, 100))
def test_normalised_map_does_not_depend_on_the_scale(seed: int, factor: float) -> None:
    raw = draw(seed, 2, 4, 5).abs().float() * 10
    torch.testing.assert_close(normalize_maps(raw * factor), normalize_maps(raw), atol=1e-5, rtol=0)


def test_normalisations() -> None:
    maps = torch.tensor([[2.0, 3.0, 6.0]])
    assert normalize_maps(maps, None) is maps
    torch.testing.assert_close(normalize_maps(maps, "max"), torch.tensor([[1 / 3, 0.5, 1.0]]))
    torch.testing.assert_close(normalize_maps(maps, "minmax"), torch.tensor([[0.0, 0.25, 1.0]]))
    assert normalize_maps(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="`normalize` must be"):
        normalize_maps(maps, "sum")  # type: ignore[arg-type]


def test_resize_has_half_pixel_centres() -> None:
    raw = draw(3, 1, 3, 4).abs().float()
    scaled = normalize_maps(raw)
    expected = normalize_maps(F.interpolate(scaled[None], size=(9, 8), mode="bilinear", align_corners=False)[0])
    torch.testing.assert_close(upsample_maps(raw, (9, 8)), expected)
    torch.testing.assert_close(upsample_maps(raw, (3, 4)), scaled)


def test_outliers_are_cut_for_each_map() -> None:
    raw = torch.tensor([[[0.0, 1.0, 2.0, 100.0, 3.0]], [[0.0, 1.0, 2.0, 3.0, 4.0]]])
    assert clip_outliers(raw, 0.75).tolist() == [[[0.0, 1.0, 2.0, 3.0, 3.0]], [[0.0, 1.0, 2.0, 3.0, 3.0]]]


def test_unknown_method_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"cam, gradcam.*'scorecam'"):
        compute_maps(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), "scorecam")
