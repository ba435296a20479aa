"""Heads of mean pooling and a linear layer, whose gradient is known without a backward."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = (
    1e-4  # largest error against autograd, relative to the largest gradient; 200 times as much in half precision
)


@dataclass
class HeadRecord:
    """What ran behind the target layer: linear layers with their outputs, and norms of pooled features."""

    linears: list[tuple[nn.Linear, Tensor]] = field(default_factory=list)
    norms: dict[nn.Module, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def record_head(modules: Iterable[nn.Module]) -> Iterator[HeadRecord]:
    """Records those of the modules that are linear layers or norms and were given `(batch_size, num_channels)`."""
    record = HeadRecord()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not args or not isinstance(args[0], Tensor) or args[0].ndim != 2:
            return
        if isinstance(module, nn.Linear):
            record.linears.append((module, output))
        else:
            record.norms[module] = args[0].detach()

    kinds = (nn.Linear, nn.LayerNorm)
    handles = [module.register_forward_hook(hook) for module in modules if isinstance(module, kinds)]
    try:
        yield record
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
    norm: nn.Module | None

    def gradient(self, coefficients: Tensor, pooled: Tensor | None, grids: Tensor, num_channels: int) -> Tensor:
        """Returns the gradient of `(coefficients * logits).sum()`, equal at each place.

        Args:
            coefficients: `(B, Q, C)`.
            pooled: `(B, D)`, input of the norm, if there is one.
            grids: `(B, 2)`, whose product is the number of places of each image.
            num_channels: D.

        Returns:
            `(B, Q, D, 1, 1)`, float32
        """
        if self.linear.out_features == 1:  # one logit y stands for the two -y / 2 and y / 2
            coefficients = (coefficients[..., 1:] - coefficients[..., :1]) / 2
        with torch.autocast(coefficients.device.type, enabled=False):
            vectors = coefficients.float() @ self.linear.weight.detach()[:, -num_channels:].float()  # (B, Q, D)
        if self.norm is not None and pooled is not None:
            vectors = self._through_norm(vectors, pooled)
        return (vectors / grids.prod(dim=1).to(vectors)[:, None, None])[..., None, None]

    def _through_norm(self, vectors: Tensor, pooled: Tensor) -> Tensor:
        assert self.norm is not None
        with torch.enable_grad():
            leaf = pooled.detach()[:, None].repeat(1, vectors.shape[1], 1).requires_grad_()
            (gradient,) = torch.autograd.grad(self.norm(leaf), leaf, vectors.to(leaf))
        return gradient.float()


def propose_heads(record: HeadRecord, logits: Tensor, num_channels: int) -> list[PooledHead]:
    """Returns the heads that the record allows: the linear layer that gave the logits, with and without a norm."""
    num_outputs = {logits.shape[1], 1} if logits.shape[1] == 2 else {logits.shape[1]}
    linears = [
        module
        for module, output in record.linears
        if module.out_features in num_outputs and module.in_features in (num_channels, 2 * num_channels)
    ]
    if not linears:
        return []
    norms = [norm for norm, pooled in record.norms.items() if pooled.shape[1] == num_channels]
    return [PooledHead(linears[-1], norm) for norm in [None, *norms[::-1]]]


def is_close(ours: Tensor, autograd: Tensor, dtype: torch.dtype) -> bool:
    """Whether a gradient in closed form equals that of autograd at each place."""
    tolerance = TOLERANCE if dtype in (torch.float32, torch.float64) else 200 * TOLERANCE
    largest = autograd.abs().max()
    return bool((ours - autograd).abs().max() <= tolerance * largest)
