"""Canaries: each fact about transformers' internals that `meda_cache.upstream` and `meda_cache.cache` rely on."""

import inspect
import sys
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DeepseekV3Config,
    DynamicCache,
    Gemma3nTextConfig,
    GenerationConfig,
    GenerationMixin,
    MllamaConfig,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from meda_cache.upstream import build_rotation, find_attention_modules, get_length, get_rotary_function
from support.tiny_decoders import TEXT_ONLY, Family


def test_update_gets_keys_values_and_layer_index_only(family: Family) -> None:
    calls: list[tuple[Any, ...]] = []

    class Recorder(DynamicCache):
        def update(self, *args: Any, **kwargs: Any) -> Any:
            calls.append((len(args), kwargs))
            return super().update(*args, **kwargs)

    with torch.no_grad():
        family.model(**family.prompts(1), past_key_values=Recorder(config=family.model.config))
    assert calls == [(3, {})] * family.model.config.get_text_config(decoder=True).num_hidden_layers


def test_attention_gets_the_very_keys_that_update_returned(family: Family) -> None:
    tagged: list[bool] = []

    class Tagger(DynamicCache):
        def update(self, *args: Any, **kwargs: Any) -> Any:
            keys, values = super().update(*args, **kwargs)
            keys._tag = True
            return keys, values

    def attention(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        tagged.append(hasattr(key, "_tag"))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, *args, **kwargs)

    AttentionInterface.register("canary", attention)
    AttentionMaskInterface.register("canary", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    decoder_config = family.model.config.get_text_config(decoder=True)
    decoder_config._attn_implementation_internal = "canary"
    try:
        with torch.no_grad():
            family.model(**family.prompts(1), past_key_values=Tagger(config=family.model.config))
    finally:
        decoder_config._attn_implementation_internal = "sdpa"
    assert tagged == [True] * family.model.config.get_text_config(decoder=True).num_hidden_layers


def test_eager_attention_is_a_function_of_the_model_file(family: Family) -> None:
    attention = [module for module in family.model.modules() if hasattr(module, "layer_idx")]
    modules = {sys.modules[type(module).__module__] for module in attention if "Attention" in type(module).__name__}
    assert modules
    assert all(callable(module.eager_attention_forward) for module in modules)


def test_full_attention_has_a_cache_layer_of_its_own(family: Family) -> None:
    layers = DynamicCache(config=family.model.config).layers
    assert [type(layer) for layer in layers].count(DynamicLayer) == 4


def test_mask_is_sized_by_the_cache(family: Family) -> None:
    assert list(inspect.signature(Cache.get_mask_sizes).parameters) == ["self", "query_length", "layer_idx"]
    assert list(inspect.signature(DynamicLayer.get_mask_sizes).parameters) == ["self", "query_length"]
    assert {"sdpa", "eager"} <= set(ALL_MASK_ATTENTION_FUNCTIONS)
    assert "sdpa" in ALL_ATTENTION_FUNCTIONS


def test_placeholder_ids_have_one_name(family: Family) -> None:
    config = family.model.config
    assert getattr(config, "image_token_id", None) == (None if family.name in TEXT_ONLY else 90)


def test_attention_modules_are_given_cache_and_rotary_embedding(family: Family) -> None:
    found = find_attention_modules(family.model)
    decoder_config = family.model.config.get_text_config(decoder=True)
    assert sorted(module.layer_idx for module in found) == list(range(decoder_config.num_hidden_layers))  # type: ignore[type-var]


def test_rotary_function_is_beside_the_attention_class_and_can_be_undone(family: Family) -> None:
    function = get_rotary_function(find_attention_modules(family.model)[0])
    assert list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]
    angles = torch.rand(7, 4).repeat(1, 2) * 6
    rotate = build_rotation(function, angles.cos(), angles.sin())
    keys, positions = torch.randn(2, 5, 8), torch.tensor([[0, 1, 3, 4, 6], [1, 2, 3, 5, 6]])
    torch.testing.assert_close(rotate(rotate(keys, positions, False), positions, True), keys)
    with pytest.raises(ValueError, match="without scaling"):
        build_rotation(function, 2 * angles.cos(), 2 * angles.sin())


def test_generate_takes_the_cache_by_name_and_looks_for_other_implementations() -> None:
    assert "past_key_values" in inspect.getsource(GenerationMixin._prepare_cache_for_generation)
    assert GenerationConfig().cache_implementation is None


def test_fields_that_tell_unsupported_families() -> None:
    assert DeepseekV3Config().kv_lora_rank
    assert MllamaConfig().get_text_config(decoder=True).cross_attention_layers
    assert Gemma3nTextConfig(num_kv_shared_layers=2).num_kv_shared_layers == 2


def test_layers_are_offloaded_by_these_names() -> None:
    assert {"offload", "prefetch", "crop", "batch_repeat_interleave", "batch_select_indices"} <= set(dir(DynamicLayer))


def test_assisted_decoding_announces_itself() -> None:
    assert "activate_past_recording" in vars(Cache)


@pytest.mark.parametrize("device", ["", "_for_cpu"])
def test_flash_attention_returns_its_lse_second(device: str) -> None:
    schema = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{device}").default._schema
    assert [argument.name for argument in schema.arguments][:5] == ["query", "key", "value", "dropout_p", "is_causal"]
    assert "scale" in {argument.name for argument in schema.arguments if argument.kwarg_only}
    assert [result.name for result in schema.returns][:2] == ["output", "logsumexp"]


def test_torch_says_which_attention_it_takes() -> None:
    query, key = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16)
    choice = torch._fused_sdp_choice(query, key, key, None, 0.0, True, scale=None, enable_gqa=True)
    assert choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value


def test_layers_that_count_their_tokens_and_layers_that_do_not() -> None:
    assert get_length(DynamicLayer()) == 0
    assert get_length(DynamicSlidingWindowLayer(8)) == 0
    assert get_length(LinearAttentionLayer()) is None
