"""The only place that knows the insides of transformers' vision models: where their layers and norms are."""

import inspect
from typing import Any

import torch
from torch import nn

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
    "donut-swin": WINDOWS,
    "hiera": WINDOWS,
    "maskformer-swin": WINDOWS,
    "sam": WINDOWS,
    "sam2": WINDOWS,
    "sam2_hiera_det_model": WINDOWS,
    "sam2_vision_model": WINDOWS,
    "sam3": WINDOWS,
    "sam3_vision_model": WINDOWS,
    "sam3_vit_model": WINDOWS,
    "sam_hq": WINDOWS,
    "sam_hq_vision_model": WINDOWS,
    "sam_vision_model": WINDOWS,
    "swin": WINDOWS,
    "swin2sr": WINDOWS,
    "swinv2": WINDOWS,
    "vitdet": WINDOWS,
}
"""Known models that cannot take class prompts, and why."""

NORM_IS_LEFT_OUT = ("clip_vision_model",)
"""Families whose `last_hidden_state` has not been through the final norm."""


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


def forward_arguments(model: nn.Module) -> set[str]:
    """Returns the names of the arguments that a model's `forward` takes by name."""
    return set(inspect.signature(model.forward).parameters)


def enable_checkpointing(model: Any, options: dict[str, Any], more: dict[str, Any]) -> None:
    """Switches checkpointing of activations on, under the name that this version of transformers has for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **more)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **more)
