"""Running a model so that only what lies behind the target layer is differentiated, and nothing of it changes."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from finer_cam.layers import first_tensor, is_compiled, read_logits, replace_first_tensor, takes_pixel_values
from finer_cam.sparse import SparseBackward

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
