"""The only place that knows the insides of transformers' vision models: where their layers, norms and heads are.

Prompts reach the layers by a keyword argument of the call: `backbone(pixel_values, prompt_cam=prompts)`. Encoders hand
keyword arguments on to every layer, and a hook on each layer takes it off again and puts the prompts in front of the
tokens. So a backbone that is called without it does what it always did, several models share one backbone, and a layer
that gradient checkpointing computes again meets the same hook with the same argument.
"""

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

KEY = "prompt_cam"
"""The keyword argument that carries [`Prompts`] to the layers."""

FAMILIES: dict[str, tuple[str, str]] = {
    "vit": ("layers", "layernorm"),
    "deit": ("layers", "layernorm"),
    "dinov2": ("encoder.layer", "layernorm"),
    "dinov2_with_registers": ("encoder.layer", "layernorm"),
    "dinov3_vit": ("model.layer", "norm"),
    "clip_vision_model": ("encoder.layers", "post_layernorm"),
    "siglip_vision_model": ("encoder.layers", "post_layernorm"),
    "siglip2_vision_model": ("encoder.layers", "post_layernorm"),
}
"""Where each `model_type` keeps its layers and its final norm."""

WINDOWS = "its windowed attention lets a class prompt see only a part of the image"
RELATIVE = "its relative position bias has no entry for prompts"
REFUSED: dict[str, str] = {
    "beit": RELATIVE,
    "data2vec-vision": RELATIVE,
    "hiera": WINDOWS,
    "maskformer-swin": WINDOWS,
    "sam": WINDOWS,
    "sam_vision_model": WINDOWS,
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "vitdet": WINDOWS,
}
"""Known models that cannot take class prompts, and why."""

NORM_IS_LEFT_OUT = ("clip_vision_model",)
"""Families whose `last_hidden_state` has not been through the final norm."""


@dataclass
class Prompts:
    """What one call carries to the layers.

    Args:
        owner (`str`): the model whose hooks are meant.
        layers (`dict[int, torch.Tensor]`): prompts that enter a layer, of shape `(num_prompts, hidden_size)`.
        dropout (`float`): dropout of the prompts.
        keep_input (`bool`): whether to note the input of the last layer in `seen`.
        seen (`LayerInput`, *optional*): that input, after the call.
    """

    owner: str
    layers: dict[int, torch.Tensor]
    dropout: float = 0.0
    keep_input: bool = False
    seen: "LayerInput | None" = field(default=None, repr=False)


@dataclass(frozen=True)
class LayerInput:
    """The input of a layer: tokens `(batch_size, seq_len, hidden_size)`, an additive or boolean mask, and RoPE."""

    hidden_states: torch.Tensor
    attention_mask: torch.Tensor | None = None
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None


def find_vision_model(model: Any) -> Any:
    """Returns the vision transformer in a model: itself, the vision part of CLIP and its like, or under a classifier.

    Raises:
        TypeError: if the model is not a `transformers` model.
        ValueError: if its kind cannot take class prompts; the message says why, or lists those that can.
    """
    if not hasattr(getattr(model, "config", None), "model_type"):
        raise TypeError(f"Expected a vision model of transformers, got {type(model).__name__}; use AutoModel.")
    under_head = getattr(model, getattr(model, "base_model_prefix", ""), None)
    for inner in (model, getattr(model, "vision_model", None), under_head, getattr(under_head, "vision_model", None)):
        model_type = getattr(getattr(inner, "config", None), "model_type", None)
        if model_type in FAMILIES and all(_has_submodule(inner, path) for path in FAMILIES[model_type]):
            return inner
    model_type = model.config.model_type
    if model_type in REFUSED:
        raise ValueError(f"A model of the type {model_type!r} cannot take class prompts: {REFUSED[model_type]}.")
    raise ValueError(f"Expected a vision transformer ({', '.join(FAMILIES)}), got {model_type!r}.")


def _has_submodule(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


class Backbone:
    """A view of a frozen vision transformer: its parts by one name in all families. It holds no weights of its own.

    Args:
        model (`nn.Module`): what [`find_vision_model`] returned.
    """

    def __init__(self, model: Any):
        config = model.config
        path, norm = FAMILIES[config.model_type]
        self.model = model
        self.layers: list[nn.Module] = list(model.get_submodule(path))
        self.final_norm: nn.Module = model.get_submodule(norm)
        self.norm_is_left_out = config.model_type in NORM_IS_LEFT_OUT
        self.hidden_size: int = config.hidden_size
        self.num_heads: int = config.num_attention_heads
        self.patch_size: int = config.patch_size

    @property
    def last_layer(self) -> nn.Module:
        """The layer in which class prompts look at patches."""
        return self.layers[-1]

    def read_class_tokens(self, last_hidden_state: torch.Tensor, num_classes: int) -> torch.Tensor:
        """Returns the class prompts as they left the last layer, through the final norm."""
        tokens = last_hidden_state[:, :num_classes]
        normed: torch.Tensor = self.final_norm(tokens) if self.norm_is_left_out else tokens
        return normed

    def find_grid(self, pixel_values: torch.Tensor, num_tokens: int, spatial_shapes: Any = None) -> tuple[int, int]:
        """Returns rows and columns of patches; the patches are the last `rows * columns` tokens, but for padding."""
        if spatial_shapes is not None:
            shapes = {tuple(shape) for shape in torch.as_tensor(spatial_shapes).tolist()}
            if len(shapes) > 1:
                raise ValueError(
                    f"Maps need images of one grid in a batch, got `spatial_shapes` {sorted(shapes)}; group them."
                )
            rows, columns = shapes.pop()
            return rows, columns
        rows, columns = (side // self.patch_size for side in pixel_values.shape[-2:])
        if rows * columns > num_tokens:
            raise ValueError(
                f"Expected {rows} x {columns} patches of {self.patch_size} pixels among the tokens, got {num_tokens}."
            )
        return rows, columns


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


class AttentionParts:
    """The pieces of a layer's attention, as its own modules compute them."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.norm = next(module for module in layer.children() if isinstance(module, nn.LayerNorm))
        self.attention: Any = next(module for module in layer.children() if hasattr(module, "q_proj"))
        self.output: nn.Module = getattr(self.attention, "o_proj", None) or self.attention.out_proj
        self.num_heads: int = getattr(self.attention, "num_heads", None) or self.attention.num_attention_heads
        self.scaling: float = getattr(self.attention, "scaling", None) or self.attention.scale

    def attend(self, given: LayerInput, rows: torch.Tensor) -> torch.Tensor:
        """Returns the attention of some prompts, after the softmax: `(batch_size, num_heads, num_rows, seq_len)`.

        Args:
            given (`LayerInput`): the input of the layer, prompts in front.
            rows (`torch.Tensor` of shape `(batch_size, num_rows)`): which prompts.
        """
        x = self.norm(given.hidden_states)
        chosen = torch.gather(x, 1, rows[..., None].expand(-1, -1, x.shape[2]))
        queries = self._split(self.attention.q_proj(chosen))  # prompts stand before the patches: no RoPE
        keys = self._split(self.attention.k_proj(x))
        if given.position_embeddings is not None:
            rotate = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb
            keys = rotate(keys, keys, *given.position_embeddings)[1]
        scores = (queries @ keys.transpose(-1, -2)).float() * self.scaling
        if given.attention_mask is not None:
            visible = _visible_keys(given.attention_mask)  # (batch_size, seq_len)
            scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)

    def values(self, given: LayerInput) -> torch.Tensor:
        """Returns the values of all tokens, `(batch_size, num_heads, seq_len, head_dim)`."""
        values: torch.Tensor = self.attention.v_proj(self.norm(given.hidden_states))
        return self._split(values)

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = projected.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)

    def run_tail(self, tokens: torch.Tensor, heads: torch.Tensor, given: LayerInput) -> torch.Tensor:
        """Returns tokens after the layer, had its attention given `heads`.

        The layer itself runs, on sequences of a single token, while a hook swaps the input of the projection that
        joins the heads; so residuals, layer scales, norms and MLP are its own.

        Args:
            tokens (`torch.Tensor` of shape `(num_tokens, hidden_size)`): before the layer.
            heads (`torch.Tensor` of shape `(num_tokens, num_heads, head_dim)`): what attention gives each of them.
            given (`LayerInput`): the input of the layer that they are from.
        """
        joined = heads.flatten(1)[:, None]
        extra: dict[str, Any] = {}
        if given.position_embeddings is not None:  # a prompt is no patch: nothing to rotate
            extra["position_embeddings"] = tuple(part[..., :0, :] for part in given.position_embeddings)
        with swapped_input(self.output, joined):
            out: torch.Tensor = self.layer(tokens[:, None], attention_mask=None, **extra)
        return out[:, 0]


def _visible_keys(mask: torch.Tensor) -> torch.Tensor:
    """Returns which keys the first token sees, for images padded to one length; `(batch_size, seq_len)`."""
    row = mask[:, 0, 0] if mask.ndim == 4 else mask
    return row >= 0 if row.is_floating_point() else row.bool()


@contextmanager
def swapped_input(module: nn.Module, value: torch.Tensor) -> Iterator[None]:
    """Gives a module another input in the calls of this thread while the context lasts."""
    thread = threading.get_ident()

    def swap(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (value.to(args[0].dtype),) if threading.get_ident() == thread else None

    handle = module.register_forward_pre_hook(swap)
    try:
        yield
    finally:
        handle.remove()


def forward_arguments(model: nn.Module) -> set[str]:
    """Returns the names of the arguments that a model's `forward` takes by name."""
    return set(inspect.signature(model.forward).parameters)


def enable_checkpointing(model: Any, options: dict[str, Any], more: dict[str, Any]) -> None:
    """Switches checkpointing of activations on, under the name that this version of transformers has for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **more)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **more)
