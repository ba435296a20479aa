"""Attaching a model: the hooks and the attention function through which a [`MedaCache`] sees prompt and queries."""

import inspect
import weakref
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from meda_cache import forwards
from meda_cache.layer import MedaLayer
from meda_cache.ops import resolve_backend
from meda_cache.ops.decode import decode_attention
from meda_cache.upstream import (
    BASES,
    PREFIX,
    attend_with_lse,
    find_attention_modules,
    find_model,
    get_attention_implementation,
    get_base_attention,
    register_attention,
    set_attention_implementation,
    share_decoder_config,
)

if TYPE_CHECKING:
    from meda_cache.cache import MedaCache

_HANDLES = "_meda_handles"
"""Where an attached model keeps the handles of its hooks: they are copied with it."""

_ATTACHED: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()
_READING: "weakref.WeakKeyDictionary[PreTrainedModel, weakref.ref[Any]]" = weakref.WeakKeyDictionary()
"""The cache of the forward of a model that is under way."""


def attach(model: nn.Module) -> ExitStack:
    """Returns a context manager that detaches `model`, which from now on can generate with a [`MedaCache`].

    The decoder's attention goes through a function that hands queries and masks to the cache and calls the model's own
    attention; hooks tell the cache which tokens are visual, and `generate` tells it how long the prompt is. Nothing
    changes for other caches. Without `with` the model stays attached until [`detach`]; a model that is attached
    already stays as it is. Models may share a configuration, and a copy of an attached model is attached as well.

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
    if _HANDLES in vars(model):
        return attachment  # whoever attached it detaches it
    if getattr(model, "_tp_size", None) not in (None, 1):
        raise ValueError(
            f"Expected a model whose heads are in one process, got tensor parallelism in {model._tp_size} parts, "
            "each of which would give its layers other budgets; use `device_map`."
        )
    base = get_attention_implementation(model).removeprefix(PREFIX)  # another model may share the configuration
    if base not in BASES:
        raise ValueError(
            f'Expected a model with "sdpa" or "eager" attention, got {base!r}; call '
            '`model.set_attn_implementation("sdpa")` first.'
        )
    register_attention(PREFIX + base, base, partial(meda_attention_forward, base=base))
    set_attention_implementation(model, PREFIX + base)
    handles = [
        module.register_forward_pre_hook(_record_rotary, with_kwargs=True) for module in find_attention_modules(model)
    ]
    handles.append(model.register_forward_pre_hook(_begin_forward, with_kwargs=True))
    handles.append(model.register_forward_hook(_end_forward, with_kwargs=True, always_call=True))
    vars(model)[_HANDLES] = handles
    if hasattr(model, "generate"):
        vars(model)["generate"] = MethodType(_generate, model)
    _ATTACHED.add(model)
    attachment.callback(_leave, weakref.ref(model), handles)
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
    model = find_model(model)
    for handle in vars(model).pop(_HANDLES, []):
        handle.remove()
    vars(model).pop("generate", None)
    _ATTACHED.discard(model)
    _abort_forward(model)
    name = get_attention_implementation(model)
    if name.startswith(PREFIX) and not any(share_decoder_config(model, other) for other in _ATTACHED):
        set_attention_implementation(model, name.removeprefix(PREFIX))


def _leave(reference: "weakref.ref[PreTrainedModel]", handles: list[Any]) -> None:
    """Detaches a model at the end of a `with` block, unless that is done or it has been attached anew."""
    model = reference()
    if model is not None and vars(model).get(_HANDLES) is handles:
        detach(model)


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
        scaling = kwargs.get("scaling")
        lse = output = None
        if base == "sdpa" and can_share_lse(module, layer, query, key, attention_mask=attention_mask, **kwargs):
            output, lse = attend_with_lse(query, key, value, scaling=scaling) or (None, None)
        layer.observe(query, key, scaling=scaling, attention_mask=attention_mask, lse=lse)
        layer.awaits_attention = False
        if output is not None:
            return output, None
        if can_decode(layer, query, attention_mask):
            options: dict[str, Any] = {"start": layer.start, "scaling": scaling}
            return decode_attention(query, key, value, **options, backend="triton"), None
        attention_mask = layer.build_mask(attention_mask, query.shape[2])
    return get_base_attention(base, module)(module, query, key, value, attention_mask, **kwargs)


def can_decode(layer: MedaLayer, query: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether the kernel for one new token is to be used: where it is asked for, and for prompts of unequal budgets.

    Attention over slots that are all visible is what the model's own attention does as well.
    """
    if layer.positions is None or query.shape[2] > 1:
        return False
    if attention_mask is not None and (layer.hides_later or attention_mask.dtype != torch.bool):
        return False
    backend = layer.config.backend
    return resolve_backend(backend, query) == "triton" and (backend == "triton" or layer.start is not None)


def can_share_lse(module: nn.Module, layer: MedaLayer, query: Tensor, key: Tensor, **options: Any) -> bool:
    """Whether attention is to say the sums of its rows: of a whole causal prompt, where that saves a kernel a pass."""
    if layer.reading is None or not layer.config.needs_mass or query.shape[2] != key.shape[2]:
        return False
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    others = (options.get(name) for name in ("attention_mask", "position_bias", "cache"))
    if not is_causal or options.get("dropout") or any(other is not None for other in others):
        return False
    return resolve_backend(layer.config.backend, query) == "triton"


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`generate` of the model, which first tells a [`MedaCache`] how long the prompt is."""
    cache = kwargs.get("past_key_values")
    if not _is_followed(cache) or kwargs.get("custom_generate") is not None:
        return type(model).generate(model, *args, **kwargs)
    inputs = [kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds")]
    prompt = next((tensor for tensor in (*args[:1], *inputs) if tensor is not None), None)
    forwards.begin_generate(cache, None if prompt is None else prompt.shape[1])
    try:
        tokens = type(model).generate(model, *args, **kwargs)
    except BaseException:
        forwards.end_generate(cache, failed=True)
        raise
    forwards.end_generate(cache)
    return tokens


def _is_followed(cache: Any) -> "TypeGuard[MedaCache]":
    """Whether it is a [`MedaCache`]: one that keeps a state of forwards."""
    return isinstance(getattr(cache, "state", None), forwards.ForwardState)


def _get_cache(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments if args else kwargs
    return arguments.get("past_key_values"), dict(arguments)


def _begin_forward(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache, arguments = _get_cache(model, args, kwargs)
    if _is_followed(cache):
        _READING[model] = weakref.ref(cache)
        forwards.begin_forward(
            cache,
            arguments.get("input_ids"),
            arguments.get("attention_mask"),
            inputs_embeds=arguments.get("inputs_embeds"),
            token_types=arguments.get("mm_token_type_ids"),
            has_images=any(arguments.get(name) is not None for name in ("pixel_values", "pixel_values_videos")),
        )


def _end_forward(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache, _ = _get_cache(model, args, kwargs)
    if _is_followed(cache):
        _READING.pop(model, None)
        forwards.end_forward(cache, failed=output is None)


def _abort_forward(model: PreTrainedModel) -> None:
    """Ends a forward that was interrupted: hooks are not called for a KeyboardInterrupt."""
    reference = _READING.pop(model, None)
    cache = None if reference is None else reference()
    if cache is not None and cache.is_attached:
        forwards.end_forward(cache, failed=True)


def _record_rotary(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    if _is_followed(cache):
        forwards.record_rotary(cache, module, kwargs["position_embeddings"])
