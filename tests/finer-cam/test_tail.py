"""Sparse backward of linear layers: the same gradients with fewer rows."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finer_cam.tail import SparseBackward

torch.manual_seed(0)
LAYERS = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
TOKENS = torch.randn(2, 50, 8)


def gradient(tokens: Tensor, rows: slice, *, sparse: bool) -> tuple[Tensor, int]:
    """The gradient of the sum over some tokens, and the floating-point operations of the backward."""
    leaf = tokens.clone().requires_grad_()
    if sparse:
        with SparseBackward():
            output = LAYERS(leaf)
    else:
        output = LAYERS(leaf)
    with FlopCounterMode(display=False) as counter:
        (found,) = torch.autograd.grad(output[:, rows].square().sum(), leaf)
    return found, counter.get_total_flops()


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 20), slice(0, 40), slice(0, 0)])
def test_gradient_equals_that_of_a_dense_backward(rows: slice) -> None:
    found, _ = gradient(TOKENS, rows, sparse=True)
    expected, _ = gradient(TOKENS, rows, sparse=False)
    torch.testing.assert_close(found, expected)


def test_rows_without_gradient_cost_nothing() -> None:
    _, sparse = gradient(TOKENS, slice(0, 1), sparse=True)
    _, dense = gradient(TOKENS, slice(0, 1), sparse=False)
    assert sparse * 50 == dense


def test_weights_get_no_gradient_and_other_layers_stay_as_they_are() -> None:
    leaf = TOKENS.clone().requires_grad_()
    with SparseBackward():
        LAYERS(leaf).sum().backward()
        two_dimensional = LAYERS(leaf[:, 0])
    assert all(weight.grad is None for weight in LAYERS.parameters())
    assert two_dimensional.grad_fn.name() == "AddmmBackward0"
    assert LAYERS(leaf).grad_fn.name() != "_SparseLinearBackward"
