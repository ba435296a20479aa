from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from taxaclip import chunked_contrastive_loss, contrastive_loss, distributed_contrastive_loss, replay_loss
from taxaclip.losses import soft_targets

GOLDEN = Path(__file__).parent / "golden"
BIO = 18  # rows of the golden batch that are biological; the others are replayed


@pytest.mark.parametrize("loss", [contrastive_loss, lambda *a: chunked_contrastive_loss(*a, chunk_size=5)])
def test_losses_and_gradients_are_the_golden_ones(loss: object) -> None:
    golden = load_file(GOLDEN / "replay_loss.safetensors")
    names = ("image", "text", "replay_image", "logit_scale_log")
    image, text, replay_image, scale = (golden[name].clone().requires_grad_() for name in names)
    biological = loss(image[:BIO], text[:BIO], scale)  # type: ignore[operator]
    replayed = loss(replay_image[BIO:], text[BIO:], scale)  # type: ignore[operator]
    torch.testing.assert_close(biological.reshape(1), golden["loss_bio"], rtol=0, atol=1e-12)
    torch.testing.assert_close(replayed.reshape(1), golden["loss_replay"], rtol=0, atol=1e-12)
    (biological + replayed).backward()
    for leaf, name in ((image, "image"), (text, "text"), (replay_image, "replay_image"), (scale, "logit_scale")):
        torch.testing.assert_close(leaf.grad, golden[f"grad_{name}"], rtol=0, atol=1e-12, msg=name)


def test_replay_loss_is_the_sum_without_cross_negatives() -> None:
    golden = load_file(GOLDEN / "replay_loss.safetensors")
    text, scale = golden["text"], golden["logit_scale_log"]
    total = replay_loss(golden["image"][:BIO], text[:BIO], golden["replay_image"][BIO:], text[BIO:], scale)
    torch.testing.assert_close(total.reshape(1), golden["loss_bio"] + golden["loss_replay"], rtol=0, atol=1e-12)


@given(st.integers(1, 12), st.integers(1, 13), st.integers(0, 2**32))
def test_tiles_change_neither_loss_nor_gradients(batch_size: int, chunk_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(batch_size, 6, generator=generator, dtype=torch.double) for _ in range(2)]
    results = []
    for loss in (contrastive_loss, lambda *a: chunked_contrastive_loss(*a, chunk_size=chunk_size)):
        image, text = (draw.clone().requires_grad_() for draw in draws)
        scale = torch.tensor(2.5, dtype=torch.double, requires_grad=True)
        value = loss(image, text, scale)
        (3 * value).backward()
        results.append((value, image.grad, text.grad, scale.grad))
    for dense, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, dense, rtol=1e-10, atol=1e-10)


def test_rows_of_one_taxon_are_right_answers_for_each_other() -> None:
    image = torch.eye(4, dtype=torch.double)
    ids = torch.tensor([0, 0, 1, 2])
    scale = torch.tensor(100.0, dtype=torch.double).log()
    merged = image.clone()
    merged[1] = merged[0]
    # With two rows of one taxon and equal embeddings, the best that can be reached is half of the mass each: ln 2.
    loss = contrastive_loss(merged, merged, scale, taxon_ids=ids)
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item() / 4, abs=1e-9)
    assert torch.equal(
        contrastive_loss(image, image, scale, taxon_ids=torch.arange(4)), contrastive_loss(image, image, scale)
    )


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        chunked_contrastive_loss(torch.ones(3, 4), torch.ones(2, 4), torch.tensor(0.0))
    for loss in (contrastive_loss, distributed_contrastive_loss):
        with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
            loss(torch.ones(3, 4), torch.ones(2, 4), torch.tensor(0.0))
        with pytest.raises(ValueError, match="3 rows, got 2"):
            loss(torch.ones(3, 4), torch.ones(3, 4), torch.tensor(0.0), taxon_ids=torch.arange(2))
    with pytest.raises(ValueError, match="chunk_size"):
        chunked_contrastive_loss(torch.ones(3, 4), torch.ones(3, 4), torch.tensor(0.0), chunk_size=0)


def test_soft_targets_weigh_by_the_lowest_common_rank() -> None:
    rows = torch.tensor([[1, 10, 100], [1, 11, 110]])
    columns = torch.tensor([[1, 10, 100], [1, 10, 101], [1, 12, 120], [2, 20, 200]])
    weights = (0.1, 0.5, 1.0)
    expected = torch.tensor([[1.0, 0.5, 0.1, 0.0], [0.1, 0.1, 0.1, 0.0]])
    torch.testing.assert_close(soft_targets(rows, columns, weights), expected / expected.sum(dim=1, keepdim=True))
    same = soft_targets(rows[:, -1], columns[:, -1][:1])
    assert same[0].tolist() == [1.0]


def test_ranks_with_weight_on_the_species_only_are_taxon_ids() -> None:
    image, text = torch.randn(2, 6, 4, dtype=torch.double)
    lineages = torch.tensor([[0, 0], [0, 1], [0, 1], [2, 2], [2, 3], [2, 2]])
    one = contrastive_loss(image, text, torch.tensor(1.0), taxon_ids=lineages[:, 1])
    other = contrastive_loss(image, text, torch.tensor(1.0), taxon_ids=lineages, rank_weights=(0.0, 1.0))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.0), (1.5, 1.0), (-0.1, 1.0)])
def test_wrong_weights_are_refused(weights: tuple[float, ...]) -> None:
    ids = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="2 weights"):
        soft_targets(ids, ids, weights)
