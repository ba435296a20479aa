"""The internals of transformers that this package relies on; `tests/meda-cache/test_upstream.py` watches each."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

PREFIX = "meda_"
BASES = ("sdpa", "eager")


def build_layers(config: PreTrainedConfig, full_attention_layer: Callable[[], Any]) -> list[Any]:
    """Returns a cache layer per decoder layer: ours where attention is full, transformers' own elsewhere."""
    layers = DynamicCache(config=config).layers
    return [full_attention_layer() if type(layer) is DynamicLayer else layer for layer in layers]


def get_visual_token_ids(config: PreTrainedConfig) -> list[int]:
    """Returns the ids of the placeholders that stand for image and video features in `input_ids`."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token_id for token_id in ids if token_id is not None]


def get_attention_implementation(model: PreTrainedModel) -> str:
    """Returns the name of the attention implementation of the decoder."""
    name: str = model.config.get_text_config(decoder=True)._attn_implementation
    return name


def register_attention(name: str, base: str, function: AttentionFunction) -> None:
    """Registers an attention function under a new name, with the masks of the implementation it is based on."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])


def get_base_attention(base: str, module: nn.Module) -> AttentionFunction:
    """Returns transformers' own attention function; `eager` is a function of the file of the attention class."""
    function: AttentionFunction | None = ALL_ATTENTION_FUNCTIONS.get(base)
    for kind in type(module).__mro__:
        if function is None:
            function = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
    if function is None:
        raise ValueError(f"Expected `eager_attention_forward` beside {type(module).__name__}; use sdpa attention.")
    return function


def set_attention_implementation(model: PreTrainedModel, name: str) -> Callable[[], None]:
    """Gives the decoder of `model` another attention implementation and returns the function that undoes it.

    Raises:
        ValueError: if the model does not look its attention function up in `AttentionInterface`.
    """
    decoder_config = model.config.get_text_config(decoder=True)
    decoders = [
        module for module in model.modules() if isinstance(module, PreTrainedModel) and module.config is decoder_config
    ]
    for module in decoders:
        if not module._can_set_attn_implementation():
            raise ValueError(
                f"Expected a model whose attention goes through `AttentionInterface`, got {type(module).__name__}, "
                "which computes it in its own code; use a model class of transformers >= 5.17 that supports "
                "`model.set_attn_implementation(...)`."
            )
    previous = decoder_config._attn_implementation_internal
    decoder_config._attn_implementation_internal = name

    def restore() -> None:
        decoder_config._attn_implementation_internal = previous

    return restore
