"""One look at a model: activations of the target layer, and what the objective depends on there."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finer_cam import layers
from finer_cam.heads import HeadRecord, PooledHead, is_close, propose_heads, record_head
from finer_cam.masking import channel_logits, choose_channels
from finer_cam.references import objective_coefficients, split_objective
from finer_cam.tail import backward, call_model, watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a call explains.

    Args:
        logits: `(B, C)`, float32.
        target: `(B, Q)`.
        references, weights: `(B, Q, T)`.
        are_weights_fixed: whether no gradient flows through the weights.
        several_targets: whether the user asked for an axis Q.
    """

    logits: Tensor
    target: Tensor
    references: Tensor
    weights: Tensor
    are_weights_fixed: bool
    several_targets: bool

    @property
    def fixed_weights(self) -> Tensor | None:
        """The weights, or `None` where they follow from the logits."""
        return self.weights if self.are_weights_fixed else None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen: see `Evidence` for the tensors, and how the gradients came about."""

    activations: Tensor
    main: Tensor
    reference: Tensor
    channels: Tensor | None
    grids: Tensor
    path: str


Choose = Callable[[Tensor], Choice]


class Observer:
    """Looks at a layer of a model, and remembers whether what lies behind it has a gradient in closed form."""

    def __init__(self, model: nn.Module, layer_name: str, layer: nn.Module):
        self.model, self.layer_name, self.layer = model, layer_name, layer
        self.head: PooledHead | None = None
        self.is_head_known = False

    def forget_head(self) -> None:
        """Forgets the closed form: the next call compares again."""
        self.head, self.is_head_known = None, False

    def observe_gradients(
        self, pixel_values: Tensor, kwargs: dict[str, Any], shape: layers.ImageShape, choose: Choose
    ) -> tuple[Observation, Choice]:
        """Returns the gradients of both parts of the objective, by autograd or in closed form."""
        head = self.head
        pooled_norm = [head.norm] if head is not None and head.norm is not None else []
        with (
            watch(self.layer, with_graph=head is None) as watched,
            record_head(pooled_norm if self.is_head_known else self.model.modules()) as record,
        ):
            logits = call_model(self.model, pixel_values, kwargs)
        output = watched.get(self.layer_name)
        layout = layers.find_layout(output, shape)
        activations = layout.to_grid(output.detach()).float()
        grids = torch.tensor(layout.grids, device=output.device)
        choice = choose(logits.detach().float())
        parts = objective_coefficients(choice.logits, choice.target, choice.references, choice.fixed_weights)
        if head is None:
            main, reference = self._backward(logits, output, parts, layout)
            if not self.is_head_known:
                self._learn_head(record, logits, parts, (main, reference), grids, activations)
        else:
            main, reference = self._closed_form(head, record, parts, grids, activations.shape[1])
        self._check(parts[0], main)
        seen = Observation(
            activations=activations,
            main=main.to(activations.device),  # the logits may be elsewhere
            reference=reference.to(activations.device),
            channels=None,
            grids=grids,
            path="autograd" if head is None else "analytic",
        )
        return seen, choice

    def _backward(
        self, logits: Tensor, output: Tensor, parts: tuple[Tensor, Tensor], layout: layers.Layout
    ) -> tuple[Tensor, Tensor]:
        """Returns both gradients, `(B, Q, D, h, w)`: one pass back through the tail for each part and target."""
        num_targets = parts[0].shape[1]

        def gradients(part: Tensor, is_last: bool) -> Tensor:
            found = [
                backward(logits, output, part[:, number], keep_graph=not (is_last and number == num_targets - 1))
                for number in range(num_targets)
            ]
            return torch.stack([layout.to_grid(gradient).float() for gradient in found], dim=1)

        with torch.enable_grad():
            return gradients(parts[0], False), gradients(parts[1], True)

    @staticmethod
    def _closed_form(
        head: PooledHead, record: HeadRecord, parts: tuple[Tensor, Tensor], grids: Tensor, num_channels: int
    ) -> tuple[Tensor, Tensor]:
        """Returns both gradients, `(B, Q, D, 1, 1)`."""
        pooled = record.norms.get(head.norm) if head.norm is not None else None
        return (
            head.gradient(parts[0], pooled, grids, num_channels),
            head.gradient(parts[1], pooled, grids, num_channels),
        )

    def _learn_head(
        self,
        record: HeadRecord,
        logits: Tensor,
        parts: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor],
        grids: Tensor,
        activations: Tensor,
    ) -> None:
        """Finds out, by comparison with autograd, whether the gradient has a closed form; the next calls use it."""
        self.is_head_known = True
        heads = propose_heads(record, logits, activations.shape[1])
        inside = _inside(activations.shape[2:], grids)
        for head in heads:
            closed = self._closed_form(head, record, parts, grids, activations.shape[1])
            if all(is_close(one * inside, other, logits.dtype) for one, other in zip(closed, gradients, strict=True)):
                self.head = head
                return
        if heads:
            logger.info(
                "What lies behind %s is not mean pooling and a linear layer: gradients come from autograd.",
                self.layer_name,
            )

    def _check(self, coefficients: Tensor, gradient: Tensor) -> None:
        """Raises if no gradient reaches the target layer, instead of returning maps of zeros."""
        if gradient.any():
            return
        if not coefficients.any():
            raise ValueError(
                "`weighting='reference-code'` vanishes here: the model gives the references no probability; use "
                "'uniform' or 'softmax'."
            )
        raise ValueError(
            f"the gradient at the target layer {self.layer_name!r} is zero everywhere: the logits do not depend on "
            "these places (after the last block of a ViT only the CLS token is read); use "
            f"{layers.suggest_target_layer(self.model, self.layer_name)}."
        )

    def observe_scores(
        self,
        pixel_values: Tensor,
        kwargs: dict[str, Any],
        shape: layers.ImageShape,
        choose: Choose,
        *,
        batch_size: int,
        top_channels: int | None,
    ) -> tuple[Observation, Choice]:
        """Returns both parts of the objective for the image masked by each channel, `(B, Q, K)`."""
        if shape.is_patchified:
            raise ValueError(
                "`method='scorecam'` masks pixels and needs `pixel_values` of shape (batch_size, num_channels, "
                "height, width), got patches; use another method."
            )
        with watch(self.layer, with_graph=False) as watched:
            logits = call_model(self.model, pixel_values, kwargs)
        output = watched.get(self.layer_name)
        layout = layers.find_layout(output, shape)
        activations = layout.to_grid(output).float()
        choice = choose(logits.float())
        channels = choose_channels(activations, top_channels)

        def forward(masked: Tensor, rows: Tensor) -> Tensor:
            chosen = {name: _take(value, rows, len(pixel_values)) for name, value in kwargs.items()}
            return call_model(self.model, masked, chosen)

        scores = channel_logits(forward, pixel_values, activations, channels, batch_size)  # (B, K, C)
        main, reference = _score_parts(scores, choice)
        seen = Observation(
            activations=activations,
            main=main.to(activations.device),
            reference=reference.to(activations.device),
            channels=channels,
            grids=torch.tensor(layout.grids, device=output.device),
            path="forward",
        )
        return seen, choice


def _score_parts(scores: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Returns both parts of the objective, `(B, Q, K)`, from logits `(B, K, C)` of masked images."""
    num_channels, num_targets = scores.shape[1], choice.target.shape[1]

    def repeat(values: Tensor) -> Tensor:  # (B, Q, ...) to (B * K, Q, ...)
        return values[:, None].expand(-1, num_channels, *values.shape[1:]).flatten(0, 1)

    weights = choice.fixed_weights
    main, reference = split_objective(
        scores.flatten(0, 1),
        repeat(choice.target),
        repeat(choice.references),
        None if weights is None else repeat(weights),
    )
    shape = (len(scores), num_channels, num_targets)
    return main.reshape(shape).transpose(1, 2), reference.reshape(shape).transpose(1, 2)


def _inside(size: Sequence[int], grids: Tensor) -> Tensor:
    """Returns 1 for places inside the grid of each image and 0 for padding, `(B, 1, 1, h, w)`."""
    rows = torch.arange(size[0], device=grids.device)[:, None] < grids[:, 0, None, None]
    columns = torch.arange(size[1], device=grids.device)[None] < grids[:, 1, None, None]
    return (rows & columns)[:, None, None].float()


def _take(value: Any, rows: Tensor, batch_size: int) -> Any:
    """Returns the rows of a tensor that has one entry for each image."""
    is_batched = isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch_size
    return value[rows.to(value.device)] if is_batched else value
