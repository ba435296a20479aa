"""A backward that leaves out the rows without a gradient: of linear layers, GELUs and attention."""

from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _SparseLinear(torch.autograd.Function):
    """A linear layer whose backward leaves out the rows without a gradient, and the weights."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _backward_by_rows(gradient, weight, lambda found, rows: found), None, None


class _SparseGeluLinear(torch.autograd.Function):
    """A linear layer of a GELU that was computed before: their backward, as that of `_SparseLinear`, in one.

    Two backwards, one after the other, would hold the gradient between them, as large as the widest layer.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, activated: Tensor, weight: Tensor, bias: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.options = options
        return F.linear(activated, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        flat = inputs.flatten(0, -2)

        def through_gelu(found: Tensor, rows: Tensor | slice) -> Tensor:
            through: Tensor = torch.ops.aten.gelu_backward(found, flat[rows], **ctx.options)
            return through

        return _backward_by_rows(gradient, weight, through_gelu), None, None, None, None


class _SparseAttention(torch.autograd.Function):
    """Attention whose backward leaves out the queries without a gradient, if those are most of them.

    Of the others it takes the weights anew, from the definition of attention.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)  # which tells if they were written into
        ctx.inputs, ctx.scale = [part.detach().requires_grad_() for part in (query, key, value)], scale
        with torch.enable_grad():
            ctx.output = F.scaled_dot_product_attention(ctx.inputs[0], ctx.inputs[1], ctx.inputs[2], scale=scale)
        output: Tensor = ctx.output.detach()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors  # (B, H, N, D)
        rows = gradient.transpose(0, 2).flatten(1).any(dim=1).nonzero()[:, 0]
        if 2 * len(rows) > query.shape[2]:
            return *torch.autograd.grad(ctx.output, ctx.inputs, gradient, retain_graph=True), None
        few, outgoing, keys, values = (part.float() for part in (query[:, :, rows], gradient[:, :, rows], key, value))
        weights = (few @ keys.mT * ctx.scale).softmax(dim=-1)  # (B, H, R, N)
        changes = outgoing @ values.mT
        scores = weights * (changes - (weights * changes).sum(dim=-1, keepdim=True)) * ctx.scale
        for_query = torch.zeros_like(query).index_copy_(2, rows, (scores @ keys).to(query.dtype))
        return for_query, (scores.mT @ few).to(key.dtype), (weights.mT @ outgoing).to(value.dtype), None


def _backward_by_rows(gradient: Tensor, weight: Tensor, before: Callable[[Tensor, Tensor | slice], Tensor]) -> Tensor:
    """Returns the gradient of the inputs of a linear layer, for its rows that have one, taken on through `before`."""
    flat = gradient.flatten(0, -2)
    rows = flat.any(dim=1).nonzero()[:, 0]
    if 2 * len(rows) > len(flat):
        found = before(flat @ weight, slice(None))
    else:
        found = flat.new_zeros(len(flat), weight.shape[1]).index_copy_(0, rows, before(flat[rows] @ weight, rows))
    return found.view(*gradient.shape[:-1], -1)


class SparseBackward(TorchFunctionMode):
    """Makes the plain linear layers of a recorded forward, GELUs before them and attention sparse in the backward.

    Where a model reads its CLS token only, all other rows behind the last attention have a gradient of zero: most of
    the arithmetic of a dense backward.
    """

    def __init__(self) -> None:
        super().__init__()
        # The last GELU: its output, its input, the versions of both, and its options.
        self._gelu: tuple[ReferenceType[Tensor], Tensor, tuple[int, int], dict[str, Any]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and torch.is_grad_enabled() and not kwargs and _is_plain(args):
            return self._linear(args[0], args[1].detach(), args[2] if len(args) > 2 else None)
        if func is F.scaled_dot_product_attention and _is_plain_attention(args, kwargs):
            scale = kwargs.get("scale")
            return _SparseAttention.apply(*args, args[0].shape[-1] ** -0.5 if scale is None else scale)  # type: ignore[no-untyped-call]
        output = func(*args, **kwargs)
        if func is F.gelu and args and type(output) is Tensor and output.requires_grad:
            self._gelu = (ref(output), args[0], (output._version, args[0]._version), kwargs)
        return output

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._gelu is not None and self._gelu[0]() is inputs:
            _, before, versions, options = self._gelu
            if versions == (inputs._version, before._version):  # neither was written into since
                output: Tensor = _SparseGeluLinear.apply(before, inputs.detach(), weight, bias, options)  # type: ignore[no-untyped-call]
                return output
        plain: Tensor = _SparseLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return plain


def _is_plain(args: Any) -> bool:
    """Whether a linear layer has ordinary weights and an input `(..., N, D)` with a gradient, outside autocast."""
    inputs, weight = args[:2]
    return (
        type(inputs) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and inputs.ndim > 2
        and inputs.requires_grad
        and not torch.is_autocast_enabled(inputs.device.type)
    )


def _is_plain_attention(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether attention has three inputs `(B, H, N, D)` with gradients, no mask, no dropout, outside autocast."""
    return (
        len(args) == 3
        and torch.is_grad_enabled()
        and all(type(part) is Tensor and part.ndim == 4 and part.requires_grad for part in args)
        and args[0].shape[1] == args[1].shape[1]
        and not any(isinstance(value, Tensor) or value for name, value in kwargs.items() if name != "scale")
        and not torch.is_autocast_enabled(args[0].device.type)
    )
