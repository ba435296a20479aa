"""Attaching a model: the hooks and the attention function through which a [`MedaCache`] sees prompt and queries."""

import inspect
import weakref
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from meda_cache.cache import MedaCache
from meda_cache.layer import MedaLayer
from meda_cache.ops import resolve_backend
from meda_cache.ops.decode import decode_attention
from meda_cache.upstream import (
    BASES,
    PREFIX,
    find_attention_modules,
    get_attention_implementation,
    get_base_attention,
    get_rotary_function,
    register_attention,
    set_attention_implementation,
)

_ATTACHMENTS: "weakref.WeakKeyDictionary[PreTrainedModel, ExitStack]" = weakref.WeakKeyDictionary()


def attach(model: nn.Module) -> ExitStack:
    """Returns a context manager that detaches `model`, which from now on can generate with a [`MedaCache`].

    The decoder's attention goes through a function that hands queries and masks to the cache and calls the model's own
    attention; hooks tell the cache which tokens are visual, and `generate` tells it how long the prompt is. Nothing
    changes for other caches. Without `with` the model stays attached until [`detach`]; a model that is attached
    already stays as it is.

    Args:
        model (`PreTrainedModel`, or a module that wraps one, such as a `PeftModel`):
            A decoder with `"sdpa"` or `"eager"` attention, with or without a vision tower.

    Raises:
        TypeError: if there is no transformers model in `model`.
        ValueError: if the model has another attention implementation, or computes attention in its own code.

    Example:

    ```python
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from meda_cache import attach
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                      num_attention_heads=2))
    >>> with attach(model):
    ...     model.config._attn_implementation
    'meda_sdpa'
    >>> model.config._attn_implementation
    'sdpa'

    ```
    """
    model = find_model(model)
    attachment = ExitStack()
    if model in _ATTACHMENTS:
        return attachment  # whoever attached it detaches it
    if getattr(model, "_tp_size", None) not in (None, 1):
        raise ValueError(
            f"Expected a model whose heads are in one process, got tensor parallelism in {model._tp_size} parts, "
            "each of which would give its layers other budgets; use `device_map`."
        )
    base = get_attention_implementation(model)
    if base not in BASES:
        raise ValueError(
            f'Expected a model with "sdpa" or "eager" attention, got {base!r}; call '
            '`model.set_attn_implementation("sdpa")` first.'
        )
    register_attention(PREFIX + base, base, partial(meda_attention_forward, base=base))
    attachment.callback(set_attention_implementation(model, PREFIX + base))
    for module in find_attention_modules(model):
        attachment.callback(module.register_forward_pre_hook(_record_rotary, with_kwargs=True).remove)
    attachment.callback(model.register_forward_pre_hook(_begin_forward, with_kwargs=True).remove)
    attachment.callback(model.register_forward_hook(_end_forward, with_kwargs=True, always_call=True).remove)
    if hasattr(model, "generate"):
        vars(model)["generate"] = MethodType(_generate, model)
    attachment.callback(_forget, weakref.ref(model))
    _ATTACHMENTS[model] = attachment
    return attachment


def detach(model: nn.Module) -> None:
    """Undoes [`attach`]: no hook is left and attention is what it was. Does nothing if `model` is not attached.

    Args:
        model (`PreTrainedModel`, or a module that wraps one): the model that was attached.

    Example:

    ```python
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from meda_cache import attach, detach
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...                                      num_attention_heads=2))
    >>> _ = attach(model)
    >>> detach(model)
    >>> model.config._attn_implementation
    'sdpa'

    ```
    """
    attachment = _ATTACHMENTS.get(find_model(model))
    if attachment is not None:
        attachment.close()


def meda_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    base: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Returns what the base attention returns, on keys, values and mask of the layer that the keys come from.

    Args:
        module (`nn.Module`): attention module of the model.
        query (`torch.Tensor` of shape `(batch_size, num_heads, query_length, head_dim)`): queries.
        key (`torch.Tensor` of shape `(batch_size, num_key_value_heads, physical_length, head_dim)`):
            What the cache returned. Keys of vision towers, sliding layers and other caches pass untouched.
        value (`torch.Tensor` of shape `(batch_size, num_key_value_heads, physical_length, head_dim)`): values.
        attention_mask (`torch.Tensor`, *optional*): the mask that the model made for an uncompressed cache.
        base (`str`): `"sdpa"` or `"eager"`.

    Returns:
        `tuple`: output of shape `(batch_size, query_length, num_heads, head_dim)`, and weights or None.
    """
    layer = getattr(key, "_meda_layer", None)
    if isinstance(layer, MedaLayer):
        for name in ("softcap", "s_aux"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"Expected plain softmax attention, got {type(module).__name__} with `{name}`, which the scores "
                    "of MedaCache do not know yet; use `DynamicCache`."
                )
        layer.observe(query, key, scaling=kwargs.get("scaling"), attention_mask=attention_mask)
        layer.awaits_attention = False
        if can_decode(layer, query, attention_mask):
            options: dict[str, Any] = {"start": layer.count_empty_slots(), "scaling": kwargs.get("scaling")}
            return decode_attention(query, key, value, **options, backend="triton"), None
        attention_mask = layer.build_mask(attention_mask, query.shape[2])
    return get_base_attention(base, module)(module, query, key, value, attention_mask, **kwargs)


def can_decode(layer: MedaLayer, query: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether the kernel for one new token is to be used: where it is asked for, and for prompts of unequal budgets.

    Attention over slots that are all visible is what the model's own attention does as well.
    """
    if layer.positions is None or query.shape[2] > 1 or attention_mask is not None:
        return False
    backend = layer.config.backend
    return resolve_backend(backend, query) == "triton" and (backend == "triton" or layer.has_empty_slots)


def find_model(model: nn.Module) -> PreTrainedModel:
    """Returns the outermost transformers model, the one whose `forward` gets `input_ids` and the cache."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(f"Expected a transformers model or a module that wraps one, got {type(model).__name__}.")


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`generate` of the model, which first tells a [`MedaCache`] how long the prompt is."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, MedaCache) and kwargs.get("custom_generate") is None:
        inputs = [kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds")]
        prompt = next((tensor for tensor in (*args[:1], *inputs) if tensor is not None), None)
        if prompt is not None and prompt.shape[1] > cache.get_seq_length():
            cache.expect(prompt.shape[1])
    return type(model).generate(model, *args, **kwargs)


def _get_cache(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments if args else kwargs
    return arguments.get("past_key_values"), dict(arguments)


def _begin_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache, arguments = _get_cache(model, args, kwargs)
    if isinstance(cache, MedaCache):
        cache.begin_forward(
            arguments.get("input_ids"),
            arguments.get("attention_mask"),
            inputs_embeds=arguments.get("inputs_embeds"),
            token_types=arguments.get("mm_token_type_ids"),
            has_images=any(arguments.get(name) is not None for name in ("pixel_values", "pixel_values_videos")),
        )


def _end_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache, _ = _get_cache(model, args, kwargs)
    if isinstance(cache, MedaCache):
        cache.end_forward(failed=output is None)


def _record_rotary(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keeps the rotary embedding of a prompt for merges in un-rotated space."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, MedaCache) and cache.compression.merge_space == "unrotated":
        index: Any = module.layer_idx
        layer = cache.managed_layers.get(index)
        if layer is not None and layer.reading is not None:
            layer.rotary.append(kwargs["position_embeddings"])
            layer.rotary_function = get_rotary_function(module)


def _forget(reference: "weakref.ref[PreTrainedModel]") -> None:
    model = reference()
    if model is not None:
        _ATTACHMENTS.pop(model, None)
        vars(model).pop("generate", None)
