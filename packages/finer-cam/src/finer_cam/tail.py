"""Running a model so that only what lies behind the target layer is differentiated, and nothing of it changes."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from finer_cam.layers import first_tensor, is_compiled, read_logits, replace_first_tensor, takes_pixel_values

# Training mode belongs to a module and the stance of the compiler to the process, so threads must agree on both.
_LOCK = threading.Lock()
_SUSPENDED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # calls that keep a training module from training
_STANCE = threading.RLock()


@dataclass
class Watched:
    """What the target layer gave: its output as a leaf of the graph, or detached without a graph."""

    output: Tensor | None = None

    def get(self, layer_name: str) -> Tensor:
        """Returns the output, or raises if the layer was not reached."""
        if self.output is None:
            raise ValueError(
                f"the target layer {layer_name!r} was not reached: the model never calls it, or a compiled graph "
                "does; give another `target_layer`, or the model before compilation."
            )
        return self.output


@contextlib.contextmanager
def watch(layer: nn.Module, *, with_graph: bool) -> Iterator[Watched]:
    """Keeps the output of a layer; with a graph, the forward starts to record at that output and not before.

    The hook answers only to the thread that set it.
    """
    watched, thread = Watched(), threading.get_ident()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return output
        watched.output = first_tensor(output).detach()
        if not with_graph:
            watched.output = watched.output.clone()  # what comes after may write into it
            return output
        watched.output.requires_grad_()
        torch.set_grad_enabled(True)
        return replace_first_tensor(output, watched.output.clone())

    handle = layer.register_forward_hook(hook)
    try:
        yield watched
    finally:
        handle.remove()


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Runs a model in evaluation mode, without a graph, outside `inference_mode`, uncompiled; then as it was."""
    modules = list(model.modules())
    with contextlib.ExitStack() as stack:
        if any(map(is_compiled, modules)):
            stack.enter_context(_STANCE)
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # hooks do not run in compiled graphs
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_suspended_training(modules))
        yield


@contextlib.contextmanager
def _suspended_training(modules: list[nn.Module]) -> Iterator[None]:
    """Takes modules out of training mode until the last call that asked for it has ended, in whatever thread."""
    with _LOCK:
        suspended = [module for module in modules if module.training or module in _SUSPENDED]
        for module in suspended:
            _SUSPENDED[module] = _SUSPENDED.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in suspended:
                _SUSPENDED[module] -= 1
                if _SUSPENDED[module] == 0:
                    del _SUSPENDED[module]
                    module.training = True


def without_inference_tensors(value: Any) -> Any:
    """Returns a tensor that autograd may use: one made in `inference_mode` is copied."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextlib.contextmanager
def explained_errors(model: nn.Module) -> Iterator[None]:
    """Says what is wrong where autograd failed at weights made in `inference_mode`, which it cannot use."""
    try:
        yield
    except RuntimeError as error:
        if not any(weight.is_inference() for weight in model.parameters()):
            raise
        raise ValueError(
            "expected weights that autograd can use, but the model was made inside `torch.inference_mode()`: "
            "load it outside, or use `method='scorecam'`, which needs no gradient."
        ) from error


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
    """Makes the plain linear layers of a recorded forward, and GELUs before them, sparse in the backward.

    Where a model reads its CLS token only, all other rows behind the last attention have a gradient of zero: most of
    the arithmetic of a dense backward.
    """

    def __init__(self) -> None:
        super().__init__()
        # The last GELU: its output, the version of that, its input and its options.
        self._gelu: tuple[ReferenceType[Tensor], int, Tensor, dict[str, Any]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and torch.is_grad_enabled() and not kwargs and _is_plain(args):
            return self._linear(args[0], args[1].detach(), args[2] if len(args) > 2 else None)
        output = func(*args, **kwargs)
        if func is F.gelu and args and type(output) is Tensor and output.requires_grad:
            self._gelu = (ref(output), output._version, args[0], kwargs)
        return output

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._gelu is not None and self._gelu[0]() is inputs and self._gelu[1] == inputs._version:
            _, _, before, options = self._gelu
            output: Tensor = _SparseGeluLinear.apply(before, inputs.detach(), weight, bias, options)  # type: ignore[no-untyped-call]
        else:
            output = _SparseLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return output


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


def call_model(model: nn.Module, pixel_values: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Returns the logits `(B, C)`; a single logit becomes the two of classes 0 and 1."""
    with SparseBackward():
        if takes_pixel_values(model):
            return read_logits(model(pixel_values=pixel_values, **kwargs))
        return read_logits(model(pixel_values, **kwargs))


def take_rows(kwargs: dict[str, Any], rows: Tensor, batch_size: int) -> dict[str, Any]:
    """Returns arguments of a model for some images: rows of those tensors that have one for each image."""

    def take(value: Any) -> Any:
        is_batched = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch_size
        return value[rows.to(value.device)] if is_batched else value

    return {name: take(value) for name, value in kwargs.items()}


def backward(logits: Tensor, output: Tensor, coefficients: Tensor, *, keep_graph: bool) -> Tensor:
    """Returns the gradient of `(coefficients * logits).sum()` with respect to the target layer's output.

    No parameter gets a gradient. Images of a batch do not meet in a sum of logits, so each has its own.
    """
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(
            logits, output, coefficients.to(logits), retain_graph=keep_graph, allow_unused=True
        )
    if gradient is None:
        raise ValueError(
            "no gradient flows from the logits to the target layer: layers behind it (int8 ones, for example) have no "
            "backward, or it lies behind them; use `method='scorecam'`, which needs no gradient, another "
            "`target_layer`, or the model without quantisation."
        )
    return gradient
