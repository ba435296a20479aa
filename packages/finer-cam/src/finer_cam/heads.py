"""Heads of mean pooling and a linear layer, whose gradient is known without a backward."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finer_cam.layers import as_two_classes

TOLERANCE = 1e-4  # largest error, relative to the largest value
HALF_TOLERANCE = 2e-2  # the same in half precision


@dataclass(frozen=True)
class HeadCall:
    """A linear layer or a norm that was given `(B, num_channels)`, and what it made of them."""

    module: nn.Module
    inputs: Tensor
    output: Tensor


@contextlib.contextmanager
def record_head(modules: Iterable[nn.Module]) -> Iterator[list[HeadCall]]:
    """Records the calls of linear layers and norms among the modules, in this thread, if their input has no places."""
    calls: list[HeadCall] = []
    thread = threading.get_ident()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread and args and isinstance(args[0], Tensor) and args[0].ndim == 2:
            calls.append(HeadCall(module, args[0].detach(), output.detach()))

    kinds = (nn.Linear, nn.LayerNorm)
    handles = [module.register_forward_hook(hook) for module in modules if isinstance(module, kinds)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class PooledHead:
    """A head `linear(norm(mean over places))`, the mean perhaps behind the CLS token in a longer vector.

    Args:
        linear: the classifier.
        norm: layer norm of the pooled features, if there is one.
    """

    linear: nn.Linear
    norm: nn.LayerNorm | None

    def fits(self, calls: list[HeadCall], pooled: Tensor, logits: Tensor) -> bool:
        """Returns whether a forward went this way: pooled features `(B, D)` in, all of the logits `(B, C)` out."""
        for call in calls:
            if call.module is self.linear:
                features, outputs = call.inputs[:, -pooled.shape[1] :], as_two_classes(call.output)
                is_pooled = is_close(self._normalise(pooled), features, logits.dtype)
                return is_pooled and outputs.shape == logits.shape and is_close(outputs, logits, logits.dtype)
        return False

    def gradient(self, coefficients: Tensor, pooled: Tensor, num_places: Tensor) -> Tensor:
        """Returns the gradient of `(coefficients * logits).sum()`, equal at each place.

        Args:
            coefficients: `(B, U, C)`.
            pooled: `(B, D)`, the mean over places.
            num_places: `(B,)`, of each image.

        Returns:
            `(B, U, D)`, float32
        """
        if self.linear.out_features == 1:  # one logit y stands for the two -y / 2 and y / 2
            coefficients = (coefficients[..., 1:] - coefficients[..., :1]) / 2
        weight = self.linear.weight.detach()[:, -pooled.shape[1] :].float()
        with torch.autocast(coefficients.device.type, enabled=False):
            vectors = coefficients.float() @ weight.to(coefficients.device)
            if self.norm is not None:
                vectors = self._through_norm(vectors, pooled)
        return vectors / num_places.to(vectors)[:, None, None]

    def _normalise(self, pooled: Tensor) -> Tensor:
        if self.norm is None:
            return pooled
        normalised: Tensor = self.norm(pooled.to(next(self.norm.parameters(), pooled)))
        return normalised

    def _through_norm(self, vectors: Tensor, pooled: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = pooled.detach()[:, None].repeat(1, vectors.shape[1], 1).requires_grad_()
            output = self._normalise(leaf)
            (gradient,) = torch.autograd.grad(output, leaf, vectors.to(output))
        return gradient.float()


def propose_heads(calls: list[HeadCall], num_channels: int) -> list[PooledHead]:
    """Returns the heads that the shapes of a forward allow: its linear layers, with and without one of its norms."""
    linears = [
        call.module
        for call in calls
        if isinstance(call.module, nn.Linear)
        and call.module.in_features in (num_channels, 2 * num_channels)
        and not call.module.weight.is_meta  # weights on disk are there during the forward only
    ]
    norms = [
        call.module for call in calls if isinstance(call.module, nn.LayerNorm) and call.inputs.shape[1] == num_channels
    ]
    return [PooledHead(linear, norm) for linear in linears for norm in (None, *norms)]


def is_close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Returns whether the largest difference is small beside the largest value, for the precision of the logits."""
    tolerance = TOLERANCE if dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    ours, theirs = ours.float(), theirs.to(ours.device).float()
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
