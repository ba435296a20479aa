"""Masking measures on models whose answers can be written down."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from finer_cam import area_under_curve, compute_faithfulness, energy_in_region, pointing_game, relative_drop
from finer_cam.faithfulness import build_fill
from finer_cam.measures import rank_pixels, top_pixels
from support.slow_cams import slow_energy


class Linear(nn.Module):
    """Class c counts the pixels of its own region: logits are sums of pixels under fixed masks."""

    def __init__(self, *masks: Tensor):
        super().__init__()
        self.masks = torch.stack(masks).float()
        self.batch_sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batch_sizes.append(len(x))
        return torch.einsum("bchw,khw->bk", x, self.masks)


def two_regions() -> tuple[Linear, Tensor]:
    left, right = torch.zeros(4, 5), torch.zeros(4, 5)
    left[:2], right[2:] = 0.2, 0.1
    return Linear(left, right), torch.ones(2, 1, 4, 5)


def chance(count_left: int, count_right: int) -> float:
    """Probability of class 0 with so many pixels of each region left."""
    return 1 / (1 + math.exp(0.1 * count_right - 0.2 * count_left))


def test_relative_drop_deletion_and_insertion_in_closed_form() -> None:
    model, x = two_regions()
    maps = torch.arange(20.0).flip(0).reshape(1, 4, 5).repeat(2, 1, 1)  # from the first pixel to the last
    scores = compute_faithfulness(
        model, x, maps, torch.tensor([0, 1]), torch.tensor([1, 0]), ratios=[0.1, 0.28], num_steps=4,
        insertion_fill="zero_normalized", batch_size=3,
    )  # fmt: skip
    before, after = chance(10, 10), chance(8, 10)  # 2 of 20 pixels
    assert scores.relative_drop[0.1].tolist() == pytest.approx([2 * (before - after), 2 * (after - before)], abs=1e-6)
    assert scores.target_drop[0.28][0].item() == pytest.approx(before - chance(5, 10), abs=1e-6)  # floor(5.6) = 5
    deleted = [chance(10, 10), chance(5, 10), chance(0, 10), chance(0, 5), chance(0, 0)]
    inserted = [chance(0, 0), chance(5, 0), chance(10, 0), chance(10, 5), chance(10, 10)]
    assert scores.deletion_curve[0].tolist() == pytest.approx(deleted, abs=1e-6)
    assert scores.insertion_curve[0].tolist() == pytest.approx(inserted, abs=1e-6)
    trapezoid = sum((a + b) / 2 for a, b in itertools.pairwise(deleted)) / 4
    assert scores.deletion[0].item() == pytest.approx(trapezoid, abs=1e-6)
    assert max(model.batch_sizes) == 3
    assert sum(model.batch_sizes) == 2 * (3 + 5 + 5)
    assert (scores.fill, scores.insertion_fill) == ("zero_normalized", "zero_normalized")


def test_batch_size_does_not_matter() -> None:
    model, x = two_regions()
    maps = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
    args = (model, x, maps, torch.tensor([0, 1]), torch.tensor([1, 0]))
    one, other = compute_faithfulness(*args, batch_size=1), compute_faithfulness(*args, batch_size=1000)
    torch.testing.assert_close(one.deletion_curve, other.deletion_curve)
    torch.testing.assert_close(one.insertion, other.insertion)


def test_drop_of_several_references() -> None:
    masks = [torch.zeros(1, 4) for _ in range(4)]
    for i, mask in enumerate(masks):
        mask[0, i] = 1.0
    model, x = Linear(*masks), torch.ones(1, 1, 1, 4)
    maps = torch.tensor([[[3.0, 2.0, 1.0, 0.0]]])
    target, references = torch.tensor([0]), torch.tensor([[2, 1, -1]])
    after = torch.tensor([0.0, 0.0, 1.0, 1.0]).softmax(0)  # two pixels masked
    drops = (0.25 - after).tolist()
    for reduce, expected in (("first", drops[2]), ("mean", (drops[2] + drops[1]) / 2), ("max", drops[1])):
        scores = compute_faithfulness(model, x, maps, target, references, ratios=[0.5], num_steps=0, reduce=reduce)
        assert scores.relative_drop[0.5].item() == pytest.approx(drops[0] - expected, abs=1e-6)
        assert torch.isnan(scores.deletion).all()


def test_first_reference_is_the_first_that_is_no_padding() -> None:
    masks = [torch.zeros(1, 4) for _ in range(4)]
    for i, mask in enumerate(masks):
        mask[0, i] = 1.0 + i
    model, x, maps = Linear(*masks), torch.ones(2, 1, 1, 4), torch.tensor([[[3.0, 2.0, 1.0, 0.0]]] * 2)
    target = torch.tensor([2, 2])
    options = {"ratios": [0.5], "num_steps": 0}
    padded = compute_faithfulness(model, x, maps, target, torch.tensor([[-1, 3], [1, -1]]), **options)
    plain = compute_faithfulness(model, x, maps, target, torch.tensor([3, 1]), **options)
    assert torch.equal(padded.reference_drop[0.5], plain.reference_drop[0.5])
    assert len(set(plain.reference_drop[0.5].tolist())) == 2
    for references in (torch.tensor([[3], [-1]]), torch.empty(2, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="`references` must have a class for each image, got none for image"):
            compute_faithfulness(model, x, maps, target, references, **options)
    with pytest.raises(ValueError, match=r"`target` \(B,\) and `references`"):
        compute_faithfulness(model, x, maps, target, torch.tensor([[3]]), **options)


def test_arguments_of_each_image_go_along_with_it() -> None:
    class Shifted(Linear):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return super().forward(x) + shift

    left, right = torch.zeros(4, 5), torch.zeros(4, 5)
    left[:2], right[2:] = 0.2, 0.1
    model, x = Shifted(left, right), torch.ones(2, 1, 4, 5)
    maps = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    whole = compute_faithfulness(model, x, maps, torch.tensor([0, 0]), torch.tensor([1, 1]), shift=shift, batch_size=7)
    for i in range(2):
        one = compute_faithfulness(
            model, x[[i]], maps[[i]], torch.tensor([0]), torch.tensor([1]), shift=shift[[i]], batch_size=7
        )
        torch.testing.assert_close(one.deletion_curve[0], whole.deletion_curve[i])


def test_fills() -> None:
    class Processor:
        image_mean, image_std = [0.5, 0.25, 0.0], [0.5, 0.25, 1.0]

    x = torch.arange(96.0).reshape(2, 3, 4, 4)
    assert build_fill(x, "black", Processor())[0, :, 0, 0].tolist() == [-1.0, -1.0, 0.0]
    torch.testing.assert_close(build_fill(x, "mean", None)[1, 2], x[1, 2].mean().expand(4, 4))
    assert float(build_fill(x, torch.tensor(7.0), None).min()) == 7.0
    flat = torch.full((1, 3, 16, 16), 0.7)
    torch.testing.assert_close(build_fill(flat, "blur", None), flat)
    dot = torch.zeros(1, 1, 21, 21)
    dot[0, 0, 10, 10] = 1
    blurred = build_fill(dot, "blur", None)[0, 0]
    bell = torch.exp(-((torch.arange(11.0) - 5) ** 2) / 50)
    torch.testing.assert_close(blurred[5:16, 5:16], torch.outer(bell, bell) / bell.sum() ** 2)
    with pytest.raises(ValueError, match="needs `processor="):
        build_fill(x, "black", None)
    with pytest.raises(ValueError, match="`fill` must be"):
        build_fill(x, "noise", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"ratios": [1.5]}, "`ratios`"), ({"num_steps": -1}, "`num_steps`"), ({"reduce": "sum"}, "`reduce`")],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    model, x = two_regions()
    with pytest.raises(ValueError, match=message):
        compute_faithfulness(model, x, x[:, 0], torch.tensor([0, 1]), torch.tensor([1, 0]), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one gamma"):
        compute_faithfulness(model, x, x, torch.tensor([0, 1]), torch.tensor([1, 0]))


def test_ranks_break_ties_by_index_and_top_counts_are_exact() -> None:
    maps = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.5]])
    assert rank_pixels(maps).tolist() == [[3, 4, 0], [5, 1, 2]]
    assert [int(top_pixels(torch.zeros(10, 10), ratio).sum()) for ratio in (0.0, 0.05, 0.29, 1.0)] == [0, 5, 29, 100]


@given(seed=st.integers(0, 2**16))
def test_energy_equals_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, masks = torch.rand(4, 5, generator=generator), torch.rand(4, 5, generator=generator) > 0.5
    expected = slow_energy(maps.tolist(), masks.tolist())
    assert float(energy_in_region(maps, masks)) == pytest.approx(expected, abs=1e-5)


def test_energy_and_pointing_in_boxes() -> None:
    maps = torch.zeros(2, 4, 6)
    maps[0, 1, 2], maps[0, 3, 5] = 3.0, 1.0
    boxes = torch.tensor([[2, 1, 3, 2], [0, 0, 6, 4]])
    assert energy_in_region(maps, boxes).tolist() == [0.75, 0.0]
    assert pointing_game(maps, boxes).tolist() == [True, False]
    away = torch.tensor([[4, 1, 5, 2]] * 2)
    assert [pointing_game(maps, away, tolerance)[0].item() for tolerance in (0, 1, 2)] == [False, False, True]
    assert energy_in_region(maps, boxes[0]).tolist() == [0.75, 0.0]  # one for all
    for regions in (torch.zeros(2, 3), torch.zeros(3, 4, 6), torch.zeros(1, 4), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"masks of shape \(2, 4, 6\) or boxes of shape \(2, 4\)"):
            energy_in_region(maps, regions)


def test_masks_of_images_are_not_taken_for_those_of_gammas() -> None:
    maps, masks = torch.rand(2, 2, 5, 6), torch.ones(2, 5, 6)
    for measure in (energy_in_region, pointing_game):
        with pytest.raises(ValueError, match=r"masks of shape \(2, 2, 5, 6\)"):
            measure(maps, masks)
        assert measure(maps, masks[:, None].expand_as(maps)).shape == (2, 2)


def test_energy_of_many_small_values_is_summed_in_double_precision() -> None:
    maps = torch.full((3000, 3000), 0.1)
    maps[0, 0] = 1e5
    mask = torch.zeros(3000, 3000)
    mask[0, 0] = 1
    exact = 1e5 / (1e5 + (9e6 - 1) * float(torch.tensor(0.1)))
    assert float(energy_in_region(maps, mask)) == pytest.approx(exact, rel=1e-7)


def test_probabilities_to_scores() -> None:
    assert float(relative_drop(torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.3]))) == pytest.approx(0.6)
    assert area_under_curve(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 1.0]])).tolist() == [1.0, 0.5]
