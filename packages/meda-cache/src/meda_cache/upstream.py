"""The internals of transformers that this package relies on; `tests/meda-cache/test_upstream.py` watches each."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
RotaryFunction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

PREFIX = "meda_"
BASES = ("sdpa", "eager")


UNSUPPORTED = {
    "kv_lora_rank": "latent attention (MLA), which doesn't store plain keys and values",
    "cross_attention_layers": "images in cross-attention layers, whose keys no self-attention cache holds",
    "num_kv_shared_layers": "layers that share one another's keys and values",
}
"""Fields of the decoder's configuration that tell a family whose cache can't be compressed."""


def check_decoder(config: PreTrainedConfig) -> None:
    """Raises for a model whose keys and values are stored in another way.

    Raises:
        ValueError: if the model is an encoder-decoder or one of [`UNSUPPORTED`].
    """
    if config.is_encoder_decoder:
        raise ValueError(f"Expected a decoder, got {type(config).__name__} of an encoder-decoder model.")
    for name, reason in UNSUPPORTED.items():
        if getattr(config.get_text_config(decoder=True), name, None):
            raise ValueError(
                f"Expected keys and values of plain self-attention, got {type(config).__name__} with {reason}; use "
                "`DynamicCache`."
            )


def build_layers(config: PreTrainedConfig, full_attention_layer: Callable[[int], Any]) -> list[Any]:
    """Returns a cache layer per decoder layer: ours where attention is full, transformers' own elsewhere."""
    layers = DynamicCache(config=config).layers
    return [full_attention_layer(i) if type(layer) is DynamicLayer else layer for i, layer in enumerate(layers)]


def get_visual_token_ids(config: PreTrainedConfig) -> list[int]:
    """Returns the ids of the placeholders that stand for image and video features in `input_ids`."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token_id for token_id in ids if token_id is not None]


def get_length(layer: Any) -> int | None:
    """Returns the number of tokens that a cache layer has seen, None for one that does not count them."""
    return layer.get_seq_length() if _has_keys_only(layer) else None


def empty_layer(layer: Any) -> None:
    """Empties a cache layer. Some versions of transformers leave zeros in it, to which the next prompt is appended."""
    layer.reset()
    if _has_keys_only(layer):
        layer.keys = layer.values = None
        layer.is_initialized = False


def _has_keys_only(layer: Any) -> bool:
    return isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)


def find_model(model: nn.Module) -> PreTrainedModel:
    """Returns the outermost transformers model, the one whose `forward` gets `input_ids` and the cache.

    Raises:
        TypeError: if there is none.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(f"Expected a transformers model or a module that wraps one, got {type(model).__name__}.")


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


def set_attention_implementation(model: PreTrainedModel, name: str) -> None:
    """Gives the decoder of `model` another attention implementation.

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
    decoder_config._attn_implementation_internal = name


def share_decoder_config(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two models read the name of their attention implementation in one place."""
    shared: bool = model.config.get_text_config(decoder=True) is other.config.get_text_config(decoder=True)
    return shared


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None
) -> tuple[Tensor, Tensor] | None:
    """Returns causal attention of a whole prompt as sdpa gives it, and the `lse` of its rows.

    The output is `(batch_size, seq_len, num_heads, head_dim)`, and `lse` `(batch_size, num_heads, seq_len)` the
    logarithm of the sum of exponentials of each row's scores. None where torch would not take its flash attention,
    which gives both.
    """
    device = query.device.type
    operators = torch.ops.aten
    enable_gqa = query.shape[1] != key.shape[1]
    choice = torch._fused_sdp_choice(query, key, value, None, 0.0, True, scale=scaling, enable_gqa=enable_gqa)
    is_padded = device == "cuda" and query.shape[-1] % 8 > 0  # torch pads before it
    if choice != SDPBackend.FLASH_ATTENTION.value or device not in ("cpu", "cuda") or is_padded:
        return None
    if device == "cuda":
        attend = operators._scaled_dot_product_flash_attention
    else:
        attend = operators._scaled_dot_product_flash_attention_for_cpu
    output, lse = attend(query, key, value, 0.0, True, scale=scaling)[:2]
    return output.transpose(1, 2).contiguous(), lse


def find_attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Returns the modules of the decoder that are given the cache and the rotary embedding of their tokens."""
    wanted = {"past_key_values", "position_embeddings"}
    return [
        module
        for module in model.modules()
        if hasattr(module, "layer_idx")
        and "Attention" in type(module).__name__
        and wanted <= set(inspect.signature(module.forward).parameters)
    ]


def get_rotary_function(module: nn.Module) -> RotaryFunction:
    """Returns the function that rotates queries and keys, of the file of the attention class.

    Raises:
        ValueError: if there is none.
    """
    function: RotaryFunction | None = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if function is None:
        raise ValueError(
            f'Expected `apply_rotary_pos_emb` beside {type(module).__name__}; use `merge_space="rotated"`.'
        )
    return function


def build_rotation(function: RotaryFunction, cos: Tensor, sin: Tensor) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """Returns a function from keys `(num_heads, seq_len, head_dim)`, their positions and a flag to turned keys.

    The flag turns them back. `cos` and `sin` `(length, rotary_dim)` are the model's own; it is the model's function
    that turns, so that partial and multimodal rotary embeddings come out right.

    Raises:
        ValueError: if the embedding scales as well as it turns.
    """
    if not torch.allclose((cos.float() ** 2 + sin.float() ** 2), torch.ones((), device=cos.device), atol=1e-2):
        raise ValueError('Expected a rotary embedding without scaling; use `merge_space="rotated"`.')

    def rotate(keys: Tensor, positions: Tensor, back: bool) -> Tensor:
        one_head = keys[:, None].float()  # each head is a batch row of one head, with positions of its own
        cosines, sines = cos[positions].float(), sin[positions].float()
        return function(one_head, one_head, cosines, -sines if back else sines)[1][:, 0]

    return rotate
