"""Losses and effective rank against formulas."""

import pytest
import torch

from partial_tune.regularization import distillation_loss, effective_rank, rank_loss

MASK = torch.tensor([False, True, False, True, True])


def test_distillation_is_zero_for_equal_relations_whatever_the_level() -> None:
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    student = teacher - 3.0 * MASK  # all absent logits lowered alike: nothing is lost among them
    student[:, ~MASK] = 7.0
    assert float(distillation_loss(student, teacher, MASK)) == pytest.approx(0, abs=1e-6)


def test_distillation_by_hand_with_temperature() -> None:
    teacher, student = torch.tensor([[0.0, 2.0, 0, 0, -2]]), torch.tensor([[0.0, 0.0, 9, 4, 0]])
    p, q = (torch.softmax(values[0, MASK] / 2, dim=0) for values in (teacher, student))
    expected = float((p * (p.log() - q.log())).sum())
    assert float(distillation_loss(student, teacher, MASK, temperature=2.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "dims"), [(40, 6), (5, 12)])
def test_rank_loss_is_the_mean_squared_correlation(count: int, dims: int) -> None:
    features = torch.randn(count, dims, generator=torch.Generator().manual_seed(1))
    assert float(rank_loss(features)) == pytest.approx(float(torch.corrcoef(features.T).square().mean()), rel=1e-4)


def test_rank_loss_is_highest_for_repeated_dimensions() -> None:
    one = torch.randn(30, 1, generator=torch.Generator().manual_seed(2))
    assert float(rank_loss(one.repeat(1, 8))) == pytest.approx(1, rel=1e-5)
    assert torch.isfinite(rank_loss(torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="at least two samples"):
        rank_loss(torch.zeros(1, 3))


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(5, 7)) == pytest.approx(1)
