"""Sparse backward: the same gradients with fewer rows."""

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finer_cam.sparse import SparseBackward

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


class Block(nn.Module):
    """A GELU whose output is read twice, or written into, before the linear layer behind it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, tokens: Tensor) -> Tensor:
        widened = LAYERS[0](tokens)
        activated = nn.functional.gelu(widened, approximate="tanh" if self.kind == "tanh" else "none")
        if self.kind == "written into":
            activated.mul_(2)
        if self.kind == "another gelu between":
            return LAYERS[2](activated) + nn.functional.gelu(tokens)
        return LAYERS[2](activated) + (activated[..., :8] if self.kind == "read twice" else 0)


@pytest.mark.parametrize("kind", ["tanh", "read twice", "written into", "another gelu between"])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 40)])
def test_gelus_of_all_kinds_have_the_gradient_of_a_dense_backward(kind: str, rows: slice) -> None:
    block, found = Block(kind), []
    for mode in (contextlib.nullcontext(), SparseBackward()):
        leaf = TOKENS.clone().requires_grad_()
        with mode:
            output = block(leaf)
        found += torch.autograd.grad(output[:, rows].square().sum(), leaf)
    torch.testing.assert_close(found[1], found[0])


def test_gelu_and_linear_layer_behind_it_are_one_step_of_the_backward() -> None:
    leaf = TOKENS.clone().requires_grad_()
    with SparseBackward():
        output = LAYERS(leaf)
    assert output.grad_fn.name() == "_SparseGeluLinearBackward"
    assert output.grad_fn.next_functions[0][0].name() == "_SparseLinearBackward"


def test_weights_get_no_gradient_and_other_layers_stay_as_they_are() -> None:
    leaf = TOKENS.clone().requires_grad_()
    with SparseBackward():
        LAYERS(leaf).sum().backward()
        two_dimensional = LAYERS(leaf[:, 0])
    assert all(weight.grad is None for weight in LAYERS.parameters())
    assert two_dimensional.grad_fn.name() == "AddmmBackward0"
    assert LAYERS(leaf).grad_fn.name() != "_SparseLinearBackward"


@pytest.mark.parametrize("rows", [slice(0, 1), slice(10, 40), slice(0, 50), slice(0, 0)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"attn_mask": None, "dropout_p": 0.0, "is_causal": False}])
def test_attention_has_the_gradients_of_a_dense_backward(rows: slice, options: dict[str, object]) -> None:
    found = []
    for mode in (contextlib.nullcontext(), SparseBackward()):
        inputs = [
            torch.randn(2, 3, 50, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)
        ]
        with mode:
            output = nn.functional.scaled_dot_product_attention(*inputs, **options)
        found.append((output, *torch.autograd.grad(output[:, :, rows].square().sum(), inputs)))
    assert found[1][0].grad_fn.name() == "_SparseAttentionBackward"
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected)


def test_masked_attention_stays_as_it_is() -> None:
    inputs = [torch.randn(1, 2, 6, 4).requires_grad_() for _ in range(3)]
    with SparseBackward():
        causal = nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
        masked = nn.functional.scaled_dot_product_attention(*inputs, attn_mask=torch.eye(6, dtype=torch.bool))
    assert all("Sparse" not in output.grad_fn.name() for output in (causal, masked))


def test_input_of_a_gelu_that_is_written_into_is_an_error_as_without_us() -> None:
    leaf = TOKENS.clone().requires_grad_()
    with SparseBackward():
        widened = LAYERS[0](leaf) * 1
        activated = nn.functional.gelu(widened)
        widened.add_(1)
        output = LAYERS[2](activated)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output[:, :1].sum().backward()


def test_keys_that_are_written_into_are_an_error_as_without_us() -> None:
    inputs = [torch.randn(1, 2, 6, 4).requires_grad_() for _ in range(3)]
    query, key, value = (part * 1 for part in inputs)
    with SparseBackward():
        output = nn.functional.scaled_dot_product_attention(query, key, value)
    key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output[:, :, :1].sum().backward()


def test_attention_with_a_scale_of_zero_is_a_mean() -> None:
    inputs = [torch.randn(1, 2, 6, 4).requires_grad_() for _ in range(3)]
    with SparseBackward():
        output = nn.functional.scaled_dot_product_attention(*inputs, scale=0.0)
    torch.testing.assert_close(output, inputs[2].mean(dim=2, keepdim=True).expand_as(output))
