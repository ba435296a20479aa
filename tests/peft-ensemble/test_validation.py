"""Temperatures, weights and greedy selection find what was planted."""

import pytest
import torch

from peft_ensemble.validation import combine_fitted, fit_temperatures, select_greedily


def draw(count, seed, scale=1.0):
    """Logits that are calibrated at temperature `scale`: labels are drawn from their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_temperature_is_the_one_that_the_labels_were_drawn_with(scale):
    logits, labels = draw(5000, seed=0, scale=scale)
    assert fit_temperatures(logits[None], labels).item() == pytest.approx(scale, rel=0.12)


def test_greedy_selection_leaves_out_members_that_hurt():
    logits, labels = draw(400, seed=1)
    noise = torch.randn(3, 400, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    probabilities = torch.cat([noise, logits[None]]).softmax(dim=-1)
    weights = select_greedily(probabilities, labels)
    assert weights.sum() == pytest.approx(1)
    assert weights[3] > 0.5
    alone = (logits.argmax(-1) == labels).double().mean()
    together = torch.einsum("k,knc->nc", weights, probabilities).argmax(-1) == labels
    assert together.double().mean() >= alone


def test_a_loud_member_is_brought_to_reason():
    quiet, labels = draw(4000, seed=3)
    loud = 50 * torch.randn(4000, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    logits, half = torch.stack([quiet, loud]), 2000
    calibrated, means = combine_fitted(logits[:, half:], logits[:, :half], labels[:half])
    assert calibrated[1].max() < 0.8  # it knows nothing, and has said so with certainty
    plain = logits[:, half:].softmax(dim=-1).mean(dim=0).argmax(-1) == labels[half:]
    for target in means.values():
        torch.testing.assert_close(target.sum(-1), torch.ones(half, dtype=torch.float64))
        assert (target.argmax(-1) == labels[half:]).double().mean() > plain.double().mean() + 0.1
