"""One look at a model: activations of the target layer, and what the objective depends on there."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from finer_cam import layers
from finer_cam.evidence import Evidence, MapOptions
from finer_cam.functional import LINEAR_METHODS, signed_maps
from finer_cam.heads import HeadCall, PooledHead, is_close, propose_heads, record_head
from finer_cam.layout import ImageShape, Layout, find_layout
from finer_cam.masking import channel_logits, choose_channels
from finer_cam.references import Objective, build_objective, split_objective
from finer_cam.tail import backward, call_model, take_rows, watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the model is called with."""

    pixel_values: Tensor
    kwargs: dict[str, Any]
    shape: ImageShape


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a call explains.

    Args:
        logits: `(B, C)`, float32.
        target: `(B, Q)`.
        references, weights: `(B, Q, T)`.
        are_weights_fixed: whether no gradient flows through the weights.
        has_several_targets: whether the user asked for an axis Q.
    """

    logits: Tensor
    target: Tensor
    references: Tensor
    weights: Tensor
    are_weights_fixed: bool
    has_several_targets: bool

    @property
    def fixed_weights(self) -> Tensor | None:
        """The weights, or `None` where they follow from the logits."""
        return self.weights if self.are_weights_fixed else None


Choose = Callable[[Tensor], Choice]
Seen = tuple[Evidence, Choice, str]  # and the path that the gradients came by


@dataclass(frozen=True)
class _Forward:
    """A forward up to the logits, what the target layer gave on the way, and the calls of its head."""

    logits: Tensor
    output: Tensor
    layout: Layout
    activations: Tensor  # (B, D, h, w), float32
    calls: list[HeadCall]

    @cached_property
    def num_places(self) -> Tensor:
        """Places of each image, `(B,)`."""
        return torch.tensor([height * width for height, width in self.layout.grids], device=self.output.device)

    @cached_property
    def pooled(self) -> Tensor:
        """The mean of the activations over the places of each image, `(B, D)`; padding is zero."""
        return self.activations.sum(dim=(2, 3)) / self.num_places[:, None]


class Observer:
    """Looks at a layer of a model, and remembers whether what lies behind it has a gradient in closed form."""

    def __init__(self, model: nn.Module, layer_name: str, layer: nn.Module, options: MapOptions):
        self.model, self.layer_name, self.layer, self.options = model, layer_name, layer, options
        self.head: PooledHead | None = None
        self.is_head_known = False

    def forget_head(self) -> None:
        """Forgets the closed form: the next call compares again."""
        self.head, self.is_head_known = None, False

    def observe_gradients(self, call: Call, choose: Choose) -> Seen:
        """Returns what gradients of the objective tell, in closed form where it still holds, else by autograd."""
        if (head := self.head) is not None:
            if (seen := self._observe_closed_form(call, choose, head)) is not None:
                return seen
            self.forget_head()
        return self._observe_autograd(call, choose)

    def _forward(self, call: Call, *, with_graph: bool, modules: Iterable[nn.Module]) -> _Forward:
        with watch(self.layer, with_graph=with_graph) as watched, record_head(modules) as calls:
            logits = call_model(self.model, call.pixel_values, call.kwargs)
        output = watched.get(self.layer_name)
        layout = find_layout(output, call.shape)
        return _Forward(logits, output, layout, layout.to_grid(output.detach()).float(), calls)

    def _observe_closed_form(self, call: Call, choose: Choose, head: PooledHead) -> Seen | None:
        """Returns what the closed form tells, or `None` if the forward did not go through that head."""
        forward = self._forward(call, with_graph=False, modules=[head.linear])
        if not head.fits(forward.calls, forward.pooled, forward.logits):
            return None
        choice, objective = self._choose(choose, forward)
        gradients = head.gradient(objective.coefficients, forward.pooled, forward.num_places)
        gradients = gradients.to(forward.activations.device)[..., None, None]
        return self._conclude(call, forward, choice, objective, gradients.unbind(dim=1), "analytic")

    def _observe_autograd(self, call: Call, choose: Choose) -> Seen:
        is_known = self.is_head_known
        forward = self._forward(call, with_graph=True, modules=() if is_known else self.model.modules())
        choice, objective = self._choose(choose, forward)
        gradients = self._backward(forward, objective)
        if not is_known:
            gradients = self._learn_head(forward, objective, gradients)
        return self._conclude(call, forward, choice, objective, gradients, "autograd")

    def _choose(self, choose: Choose, forward: _Forward) -> tuple[Choice, Objective]:
        choice = choose(forward.logits.detach().float())
        return choice, build_objective(choice.logits, choice.target, choice.references, choice.fixed_weights)

    def _backward(self, forward: _Forward, objective: Objective) -> Iterator[Tensor]:
        """Yields the gradient of each part of the objective, `(B, D, h, w)`: one pass back through the tail each."""
        parts = objective.coefficients.unbind(dim=1)
        for number, part in enumerate(parts):
            if not part.any():  # nothing to compare with
                yield torch.zeros_like(forward.activations)
                continue
            with torch.enable_grad():
                keep_graph = number < len(parts) - 1
                gradient = backward(forward.logits, forward.output, part, keep_graph=keep_graph)
            yield forward.layout.to_grid(gradient).float()

    def _learn_head(self, forward: _Forward, objective: Objective, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
        """Passes gradients on, and finds out by them whether there is a closed form, which the next calls use."""
        proposed = propose_heads(forward.calls, forward.activations.shape[1])
        heads = [head for head in proposed if head.fits(forward.calls, forward.pooled, forward.logits)]
        closed = {
            head: head.gradient(objective.coefficients, forward.pooled, forward.num_places)[..., None, None]
            for head in heads
        }
        inside = _inside(forward.layout, forward.activations)
        for number, gradient in enumerate(gradients):
            yield gradient
            heads = [
                head for head in heads if is_close(closed[head][:, number] * inside, gradient, forward.logits.dtype)
            ]
        self.head, self.is_head_known = (heads[0] if heads else None), True
        if proposed and not heads:
            logger.info(
                "What lies behind %s is not mean pooling and a linear layer: gradients come from autograd.",
                self.layer_name,
            )

    def _conclude(
        self,
        call: Call,
        forward: _Forward,
        choice: Choice,
        objective: Objective,
        gradients: Iterable[Tensor],
        path: str,
    ) -> Seen:
        """Keeps of the gradients what maps of any gamma need; raises if one that is explained is zero everywhere."""
        is_linear, device = self.options.method in LINEAR_METHODS, forward.activations.device
        parts, is_reached = torch.empty(0), []
        for number, gradient in enumerate(gradients):
            is_reached.append(gradient.flatten(1).any(dim=1))
            part = _signed_maps(forward, gradient, self.options.method) if is_linear else gradient
            if number == 0:
                parts = part.new_empty(len(part), objective.coefficients.shape[1], *part.shape[1:])
            parts[:, number] = part
        main, reference = objective.main.to(device), objective.reference.to(device)  # the logits may be elsewhere
        self._check(torch.stack(is_reached, dim=1)[:, main], objective.coefficients[:, objective.main])
        evidence = Evidence(
            parts=parts,
            main=main,
            reference=reference,
            activations=None if is_linear else forward.activations,
            channels=None,
            grids=torch.tensor(forward.layout.grids, device=forward.output.device),
            sizes=call.shape.sizes,
            options=self.options,
        )
        return evidence, choice, path

    def _check(self, is_reached: Tensor, coefficients: Tensor) -> None:
        """Raises if no gradient reaches the target layer, `(B, Q)`, instead of returning maps of zeros."""
        if is_reached.all():
            return
        image, number = (~is_reached).nonzero()[0].tolist()
        if not coefficients[image, number].any():
            raise ValueError(
                f"`weighting='reference-code'` vanishes for image {image}: the model gives the references no "
                "probability; use 'uniform' or 'softmax'."
            )
        if is_reached.any():
            raise ValueError(
                f"the gradient at the target layer {self.layer_name!r} is zero everywhere for image {image}, though "
                "not for all: the logits of its target do not depend on these places; use an earlier layer, or "
                "`method='scorecam'`, or leave the image out."
            )
        raise ValueError(
            f"the gradient at the target layer {self.layer_name!r} is zero everywhere: the logits do not depend on "
            "these places (after the last block of a ViT only the CLS token is read); use "
            f"{layers.suggest_target_layer(self.model, self.layer_name)}."
        )

    def observe_scores(self, call: Call, choose: Choose, *, batch_size: int, top_channels: int | None) -> Seen:
        """Returns both parts of the objective for the image masked by each channel."""
        if call.shape.is_patchified:
            raise ValueError(
                "`method='scorecam'` masks pixels and needs `pixel_values` of shape (batch_size, num_channels, "
                "height, width), got patches; use another method."
            )
        forward = self._forward(call, with_graph=False, modules=())
        choice = choose(forward.logits.float())
        channels = choose_channels(forward.activations, top_channels)

        def compute_logits(masked: Tensor, rows: Tensor) -> Tensor:
            return call_model(self.model, masked, take_rows(call.kwargs, rows, len(call.pixel_values)))

        scores = channel_logits(compute_logits, call.pixel_values, forward.activations, channels, batch_size)
        parts = torch.cat(_score_parts(scores, choice), dim=1).to(forward.activations.device)
        which = torch.arange(parts.shape[1], device=parts.device)
        evidence = Evidence(
            parts=parts,
            main=which[: len(which) // 2],
            reference=which[len(which) // 2 :],
            activations=forward.activations,
            channels=channels,
            grids=torch.tensor(forward.layout.grids, device=forward.output.device),
            sizes=call.shape.sizes,
            options=self.options,
        )
        return evidence, choice, "forward"


def _signed_maps(forward: _Forward, gradient: Tensor, method: str) -> Tensor:
    """Returns signed maps `(B, h, w)` of a gradient; padding is zero and counts in no mean."""
    if not forward.layout.is_ragged:
        return signed_maps(forward.activations, gradient, method)
    maps = forward.activations.new_zeros(len(gradient), *forward.activations.shape[2:])
    for row, (height, width) in enumerate(forward.layout.grids):
        inside = (row, slice(None), slice(height), slice(width))
        maps[row, :height, :width] = signed_maps(forward.activations[inside], gradient[inside], method)
    return maps


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


def _inside(layout: Layout, activations: Tensor) -> Tensor:
    """Returns 1 for places inside the grid of each image and 0 for padding, `(B, 1, h, w)`."""
    inside = torch.zeros_like(activations[:, :1])
    for row, (height, width) in enumerate(layout.grids):
        inside[row, :, :height, :width] = 1
    return inside
