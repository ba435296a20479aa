"""How prompts reach the layers of a backbone that nobody modified.

They travel in a keyword argument of the call: `backbone(pixel_values, prompt_cam=prompts)`. Encoders hand keyword
arguments on to every layer, and a hook on each layer takes it off again and puts the prompts in front of the tokens.
So a backbone that is called without it does what it always did, several models share one backbone, and a layer that
gradient checkpointing computes again meets the same hook with the same argument.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prompt_cam.backbone import Backbone

KEY = "prompt_cam"
"""The keyword argument that carries [`Prompts`] to the layers."""


@dataclass
class Prompts:
    """What one call carries to the layers.

    Args:
        owner (`str`): the model whose hooks are meant.
        layers (`dict[int, torch.Tensor]`): prompts that enter a layer, of shape `(num_prompts, hidden_size)`.
        dropout (`float`): dropout of the prompts.
        keep_input (`bool`): whether to note the input of the last layer in `seen`.
        seen (`LayerInput`): that input, after a call that was to note it.
    """

    owner: str
    layers: dict[int, torch.Tensor]
    dropout: float = 0.0
    keep_input: bool = False
    seen: "LayerInput" = field(init=False, repr=False)


@dataclass(frozen=True)
class LayerInput:
    """The input of a layer: tokens `(batch_size, seq_len, hidden_size)`, an additive or boolean mask, and RoPE."""

    hidden_states: torch.Tensor
    attention_mask: torch.Tensor | None = None
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None


def insert_prompts(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, index: int, owner: str
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The hook before each layer: drops the prompts of the layer below if new ones come, and puts those in front."""
    prompts = kwargs.get(KEY)
    if prompts is None or prompts.owner != owner:
        return None
    kwargs = {name: value for name, value in kwargs.items() if name != KEY}
    hidden_states, *rest = args
    new = prompts.layers.get(index)
    present = 0
    below = [number for number in prompts.layers if number < index]
    if below:
        present = len(prompts.layers[max(below)])
    if new is not None:
        new = new.to(device=hidden_states.device, dtype=hidden_states.dtype)
        new = new.expand(len(hidden_states), -1, -1)
        new = nn.functional.dropout(new, prompts.dropout, training=prompts.dropout > 0)
        hidden_states = torch.cat([new, hidden_states[:, present:]], dim=1)
        present = new.shape[1]
    rest, kwargs = extend_masks(rest, kwargs, present)
    if prompts.keep_input:
        mask = kwargs.get("attention_mask", rest[0] if rest else None)
        prompts.seen = LayerInput(hidden_states, mask, kwargs.get("position_embeddings"))
    return (hidden_states, *rest), kwargs


def extend_masks(rest: list[Any], kwargs: dict[str, Any], num_prompts: int) -> tuple[list[Any], dict[str, Any]]:
    """Lets everything see the prompts, and the prompts see what the first token sees."""
    if rest and rest[0] is not None:
        rest = [extend_mask(rest[0], num_prompts), *rest[1:]]
    if kwargs.get("attention_mask") is not None:
        kwargs = {**kwargs, "attention_mask": extend_mask(kwargs["attention_mask"], num_prompts)}
    return rest, kwargs


def extend_mask(mask: Any, num_prompts: int) -> torch.Tensor:
    """Returns a mask with prompts in front: boolean or additive (.., queries, keys), or 0/1 of shape (batch, keys)."""
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"Expected a tensor as attention mask, got {type(mask).__name__}; use sdpa attention.")
    if num_prompts == 0:
        return mask
    visible = 0.0 if mask.is_floating_point() and mask.ndim == 4 else 1
    longer: torch.Tensor = torch.cat([mask.new_full((*mask.shape[:-1], num_prompts), visible), mask], dim=-1)
    if mask.ndim == 4 and mask.shape[-2] > 1:
        longer = torch.cat([longer[..., :1, :].expand(-1, -1, num_prompts, -1), longer], dim=-2)
    return longer


def trim_pooled(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The hook before a pooling head that takes a mask (SigLIP 2): it gets the tokens that the mask is about."""
    if len(args) < 2 or args[1] is None:
        return None
    surplus = args[0].shape[1] - args[1].shape[-1]
    return (args[0][:, surplus:], *args[1:])


def attach_hooks(backbone: Backbone, owner: str) -> list[RemovableHandle]:
    """Registers the hooks of one model and returns their handles."""
    handles = [
        layer.register_forward_pre_hook(partial(insert_prompts, index=index, owner=owner), with_kwargs=True)
        for index, layer in enumerate(backbone.layers)
    ]
    head = getattr(backbone.model, "head", None)
    if head is not None:
        handles.append(head.register_forward_pre_hook(trim_pooled))
    return handles
