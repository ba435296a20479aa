"""Bad input gets one error that says what was expected, what came, and what to do."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3nTextConfig,
    MistralConfig,
    MllamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from meda_cache import (
    CompressionConfig,
    MedaCache,
    allocate_budgets,
    attach,
    cross_modal_entropy,
    detach,
    select_tokens,
)
from meda_cache.prompt import read_prompt
from support.tiny_decoders import TEXT, Family, build_family


@pytest.mark.parametrize("ratio", [0, -0.1, 1.7, float("nan")])
def test_keep_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"`keep_ratio` in \(0, 1\].*got"):
        CompressionConfig(keep_ratio=ratio)


@pytest.mark.parametrize(
    "options",
    [
        {"recent_fraction": 1.2},
        {"temperature": 0.0},
        {"num_sinks": -1},
        {"merge": "mean"},
        {"entropy": "both"},
        {"score": "max"},
        {"allocation": "cube"},
        {"head_reduction": "sum"},
        {"text_policy": "all"},
        {"scope": "token"},
        {"merge_space": "flat"},
        {"commit": "never"},
        {"recompress": "always"},
        {"backend": "cuda"},
        {"num_recent": -1},
        {"min_tokens": 0},
        {"window_size": 0},
        {"entropy_query_limit": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_option_out_of_range(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"Expected `{name}` .*got '?{value}"):
        CompressionConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kep_ratio": 0.2}, r"options of CompressionConfig \(keep_ratio, .*got kep_ratio"),
        ({"keep_ratio": "0.2"}, "a number for `keep_ratio`, got '0.2'"),
        ({"num_sinks": 1.5}, "an integer for `num_sinks`, got 1.5"),
        ({"similarity_threshold": "median"}, "\"mean\" or None for `similarity_threshold`, got 'median'"),
        ({"select": "top"}, "a callable for `select`, got 'top'"),
    ],
)
def test_option_of_another_name_or_type(llava: Family, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MedaCache(llava.model.config, **options)


def test_something_else_than_a_configuration(llava: Family) -> None:
    with pytest.raises(TypeError, match=r"pass `model.config`"):
        MedaCache(llava.model)
    with pytest.raises(ValueError, match="encoder-decoder"):
        MedaCache(BartConfig())


def test_configuration_of_the_text_part_with_images(llava: Family) -> None:
    cache = MedaCache(llava.model.config.text_config)
    with attach(llava.model), pytest.raises(ValueError, match=r"make the cache from `model.config`"):
        llava.model(**llava.prompts(1), past_key_values=cache)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_forward_that_failed_half_way_and_cannot_be_undone(named_family: Any, name: str) -> None:
    """A turn of which some layers have taken statistics, or tokens that a sliding layer has taken in."""
    family = named_family(name)
    options = {"recompress": "each_prefill"} if name == "llava" else {}
    cache = MedaCache(family.model.config, keep_ratio=0.3, **options)
    turn = torch.tensor([[5, 6]])
    types = {"token_type_ids": torch.zeros_like(turn)} if name == "gemma3" else {}
    with attach(family.model), torch.no_grad():
        family.model(**family.prompts(1), past_key_values=cache)
        cache.compress()
        hook = family.model.model.language_model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            family.model(input_ids=turn, **types, past_key_values=cache)
        hook.remove()
        with pytest.raises(RuntimeError, match=r"failed half way; call `cache.reset\(\)`"):
            family.model(input_ids=turn, **types, past_key_values=cache)
        cache.reset()
        family.model(**family.prompts(1), past_key_values=cache)


class Interrupted:
    """Raises at the attention of the third layer, once."""

    def __init__(self, model: Any, error: type[BaseException]):
        self.error = error
        self.hook = model.model.language_model.layers[2].register_forward_pre_hook(self)

    def __call__(self, *args: Any) -> None:
        self.hook.remove()
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted_prompt_leaves_nothing_behind(llava: Family, error: type[BaseException]) -> None:
    """torch calls no hooks for a KeyboardInterrupt: it is noticed by `generate`, `detach` and the next forward."""
    inputs, options = llava.prompts(2), {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cache = MedaCache(llava.model.config, keep_ratio=0.3)
    with attach(llava.model):
        expected = llava.model.generate(
            **inputs, past_key_values=MedaCache(llava.model.config, keep_ratio=0.3), **options
        )
        Interrupted(llava.model, error)
        with pytest.raises(error):
            llava.model.generate(**inputs, past_key_values=cache, **options)
        assert (cache.get_seq_length(), cache.prompt, cache.is_attached) == (0, None, False)
        Interrupted(llava.model, error)
        with torch.no_grad(), pytest.raises(error):
            llava.model(**llava.prompts(1), past_key_values=cache)
        again = llava.model.generate(**inputs, past_key_values=cache, **options)
        assert torch.equal(again, expected)
    cache.reset()
    Interrupted(llava.model, error)
    with torch.no_grad(), pytest.raises(error), attach(llava.model):
        llava.model(**llava.prompts(1), past_key_values=cache)
    assert (cache.get_seq_length(), cache.prompt, cache.is_attached) == (0, None, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("options", [{}, {"preset": "none"}, {"recompress": "each_prefill"}], ids=str)
def test_interrupted_step_can_be_taken_again(
    llava: Family, options: dict[str, Any], error: type[BaseException]
) -> None:
    ratio = {} if options.get("preset") == "none" else {"keep_ratio": 0.3}
    steps, logits = torch.tensor([[5, 6, 7]]), []
    with attach(llava.model), torch.no_grad():
        for is_interrupted in (False, True):
            cache = MedaCache(llava.model.config, **ratio, **options)
            llava.model(**llava.prompts(2), past_key_values=cache)
            for step in steps.split(1, dim=1):
                if is_interrupted:
                    Interrupted(llava.model, error)
                    with pytest.raises(error):
                        llava.model(input_ids=step, past_key_values=cache)
                logits.append(llava.model(input_ids=step, past_key_values=cache).logits)
            logits.append(torch.tensor([layer.physical_length for layer in cache.managed_layers.values()]))
    for undisturbed, interrupted in zip(logits[:4], logits[4:], strict=True):
        assert torch.equal(undisturbed, interrupted)


def test_generate_that_is_refused_leaves_no_declared_length(llava: Family) -> None:
    cache = MedaCache(llava.model.config, keep_ratio=0.3)
    with attach(llava.model), torch.no_grad():
        with pytest.raises(ValueError, match="not used by the model"):
            llava.model.generate(**llava.prompts(3), past_key_values=cache, max_new_tokens=2, nothing=1)
        llava.model(**llava.prompts(1), past_key_values=cache)
        cache.compress()
    assert cache.prompt_length == llava.prompts(1)["input_ids"].shape[1]


def test_offloading_without_a_gpu(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Expected a GPU to offload from, got none"):
        MedaCache(llava.model.config, offloading=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allocation": lambda entropy: torch.ones(5)}, r"one weight for each of the 4 layers, got shape \(5,\)"),
        ({"score": lambda mass, visual: mass[0]}, r"`score` to return numbers of shape .*, got shape"),
        ({"score": lambda mass, visual: mass * float("nan")}, "`score` to return numbers of shape .*, got NaN"),
    ],
    ids=["weights", "shape", "nan"],
)
def test_callables_that_return_something_else(llava: Family, options: dict[str, Any], message: str) -> None:
    cache = MedaCache(llava.model.config, **options)
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(1), past_key_values=cache)
    with pytest.raises(ValueError, match=message):
        cache.compress()


def test_attention_with_more_than_a_softmax() -> None:
    config = Gemma2Config(**{**TEXT, "head_dim": 8}, layer_types=["full_attention"] * 4)
    model = Gemma2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    with attach(model), torch.no_grad(), pytest.raises(ValueError, match="with `softcap`"):
        model(input_ids=torch.arange(3, 43)[None], past_key_values=MedaCache(config))


def test_options_given_twice(llava: Family) -> None:
    with pytest.raises(ValueError, match="either `compression` or its options"):
        MedaCache(llava.model.config, compression=CompressionConfig(), keep_ratio=0.1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_model_is_not_attached(llava: Family, implementation: str) -> None:
    llava.model.set_attn_implementation(implementation)
    with pytest.raises(RuntimeError, match=r"with meda_cache.attach\(model\)"):
        llava.model.generate(**llava.prompts(1), past_key_values=MedaCache(llava.model.config), max_new_tokens=2)
    llava.model.set_attn_implementation("sdpa")


def test_attention_implementation_changed_after_attach(llava: Family) -> None:
    cache = MedaCache(llava.model.config)
    with attach(llava.model):
        llava.model.set_attn_implementation("sdpa")
        with pytest.raises(RuntimeError, match="layer 0 did not go through MedaCache"):
            llava.model.generate(**llava.prompts(1), past_key_values=cache, max_new_tokens=3, min_new_tokens=3)


def test_padding_without_mask() -> None:
    family = build_family("llama")
    input_ids = family.prompts(0, 2)["input_ids"]
    with attach(family.model), pytest.raises(ValueError, match=r"`attention_mask` with padded prompts.*rows \[0\]"):
        family.model(input_ids=input_ids, past_key_values=MedaCache(family.model.config))


def test_padding_of_a_single_prompt_without_mask() -> None:
    model = build_family("llama").model
    with attach(model), pytest.raises(ValueError, match=r"rows \[0\]"):
        model(input_ids=torch.tensor([[0, 0, 5, 6, 7]]), past_key_values=MedaCache(model.config))


def test_a_token_that_begins_every_prompt_is_not_padding() -> None:
    model = build_family("llama").model
    with attach(model), torch.no_grad():
        output = model(input_ids=torch.tensor([[0, 4, 5], [0, 6, 7]]), past_key_values=MedaCache(model.config))
    assert output.logits.shape[:2] == (2, 3)


def test_mask_of_another_shape(llava: Family) -> None:
    inputs = llava.prompts(1)
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    with attach(llava.model), pytest.raises(ValueError, match="`attention_mask` of shape"):
        llava.model(**inputs, past_key_values=MedaCache(llava.model.config))


def test_row_of_padding_only(llava: Family) -> None:
    inputs = llava.prompts(1, 1)
    inputs["attention_mask"][1] = 0
    with attach(llava.model), pytest.raises(ValueError, match=r"only padding in rows \[1\]"):
        llava.model(**inputs, past_key_values=MedaCache(llava.model.config))


def test_embeddings_instead_of_ids() -> None:
    model = build_family("llama").model
    with attach(model), pytest.raises(ValueError, match="Expected `input_ids` with the prompt"):
        model(inputs_embeds=torch.zeros(1, 9, TEXT["hidden_size"]), past_key_values=MedaCache(model.config))


@torch.no_grad()
def test_prompt_in_several_forwards_that_nobody_declared() -> None:
    model, cache = build_family("llama").model, None
    with attach(model):
        cache = MedaCache(model.config)
        model(input_ids=torch.arange(3, 20)[None], past_key_values=cache)
        with pytest.raises(ValueError, match=r"got 17 tokens and now 5 more; call `cache.compress\(\)`.*cache.expect"):
            model(input_ids=torch.arange(20, 25)[None], past_key_values=cache)


@torch.no_grad()
def test_assisted_decoding_without_a_declared_length() -> None:
    model = build_family("llama").model
    cache = MedaCache(model.config)
    cache.activate_past_recording()
    with attach(model), pytest.raises(RuntimeError, match=r"before assisted decoding; call `cache.expect"):
        model(input_ids=torch.arange(3, 20)[None], past_key_values=cache)


def test_training() -> None:
    model = build_family("llama").model
    with attach(model), pytest.raises(RuntimeError, match=r"torch.no_grad\(\)"):
        model(input_ids=torch.arange(3, 9)[None], past_key_values=MedaCache(model.config))


def test_compress_without_prompt_or_twice(llava: Family) -> None:
    cache = MedaCache(llava.model.config)
    with pytest.raises(RuntimeError, match="none has been read"):
        cache.compress()
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(1), past_key_values=cache)
    cache.compress()
    with pytest.raises(RuntimeError, match="compressed already"):
        cache.compress()


def test_model_without_full_attention() -> None:
    with pytest.raises(ValueError, match="full-attention layers"):
        MedaCache(MistralConfig(num_hidden_layers=2, sliding_window=8))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DeepseekV3Config(num_hidden_layers=2), "latent attention"),
        (MllamaConfig(), "cross-attention layers"),
        (Gemma3nTextConfig(num_hidden_layers=4, num_kv_shared_layers=2), "share one another's keys"),
    ],
    ids=["mla", "cross-attention", "shared-layers"],
)
def test_families_that_store_something_else(config: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"plain self-attention, got .*Config with .*{reason}.*use `DynamicCache`"):
        MedaCache(config)


@pytest.mark.parametrize("implementation", ["static", "quantized", "dynamic"])
def test_another_cache_implementation_beside_it(llava: Family, implementation: str) -> None:
    """transformers says so."""
    cache = MedaCache(llava.model.config)
    with attach(llava.model), pytest.raises(ValueError, match="Passing both `cache_implementation`"):
        llava.model.generate(
            **llava.prompts(1), past_key_values=cache, cache_implementation=implementation, max_new_tokens=2
        )


def test_old_default_of_gemma_is_no_other_implementation(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of Gemma 3 say "hybrid", which transformers takes for nothing."""
    monkeypatch.setattr(llava.model.generation_config, "cache_implementation", "hybrid")
    cache = MedaCache.from_model(llava.model, keep_ratio=0.3)
    llava.model.generate(**llava.prompts(1), past_key_values=cache, max_new_tokens=2)
    assert cache.is_compressed
    detach(llava.model)


def test_model_of_which_a_part_is_here(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava.model, "_tp_size", 2)
    with pytest.raises(ValueError, match="got tensor parallelism in 2 parts"):
        attach(llava.model)


def test_right_padding_without_mask() -> None:
    pad, ids = 0, [[5, 6, 7, 8], [5, 6, 0, 0]]
    with pytest.raises(ValueError, match=r"rows \[1\] end with the padding token"):
        read_prompt(
            torch.tensor(ids),
            None,
            num_seen=0,
            num_new=4,
            batch_size=2,
            visual_token_ids=[],
            token_types=None,
            visual_mask=None,
            pad_token_id=pad,
        )


def test_declared_mask_of_another_batch(llava: Family) -> None:
    inputs = llava.prompts(1, 1)
    embeds = llava.model.get_input_embeddings()(inputs["input_ids"])
    cache = MedaCache(llava.model.config, keep_ratio=0.3)
    cache.expect(visual_mask=torch.ones(3, embeds.shape[1], dtype=torch.bool))
    with attach(llava.model), torch.no_grad(), pytest.raises(ValueError, match="each of the 2 prompts, got 3 rows"):
        llava.model(inputs_embeds=embeds, past_key_values=cache)


def test_refused_piece_leaves_the_prompt_as_it_was(llava: Family) -> None:
    inputs = llava.prompts(2)
    cache = MedaCache(llava.model.config, keep_ratio=0.3)
    with attach(llava.model), torch.no_grad():
        llava.model(**inputs, past_key_values=cache)
        with pytest.raises(ValueError, match="prompt in one forward"):
            llava.model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
        cache.compress()  # what the message says
        llava.model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 2


def test_prompt_that_fails_before_it_is_read_leaves_nothing_behind(llava: Family) -> None:
    """Images of a wrong shape: neither the prompt nor its declared length is kept."""
    inputs, cache = llava.prompts(3), MedaCache(llava.model.config, keep_ratio=0.3)
    broken = {**inputs, "pixel_values": inputs["pixel_values"][:, :1]}
    with attach(llava.model), torch.no_grad():
        cache.expect(inputs["input_ids"].shape[1])
        with pytest.raises(RuntimeError):
            llava.model(**broken, past_key_values=cache)
        shorter = llava.prompts(1)
        llava.model(**shorter, past_key_values=cache)
        cache.compress()
    assert cache.prompt_length == shorter["input_ids"].shape[1]


def test_decoding_step_that_fails_can_be_taken_again(llava: Family) -> None:
    """The first one compresses the prompt, which is not undone and not done twice."""
    inputs, cache = llava.prompts(2), MedaCache(llava.model.config, keep_ratio=0.3)
    token = torch.tensor([[5]])
    with attach(llava.model), torch.no_grad():
        llava.model(**inputs, past_key_values=cache)
        with pytest.raises(IndexError):
            llava.model(input_ids=token + 10_000, past_key_values=cache)
        assert cache.is_compressed
        kept = [layer.positions for layer in cache.managed_layers.values()]
        llava.model(input_ids=token, past_key_values=cache)
    for before, layer in zip(kept, cache.managed_layers.values(), strict=True):
        assert layer.positions is before
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 1


def test_interrupted_compression_empties_the_cache(llava: Family) -> None:
    calls = []

    def select(scores: torch.Tensor, visual_mask: torch.Tensor, budget: int) -> torch.Tensor:
        calls.append(budget)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.arange(budget).expand(len(scores), -1)

    cache = MedaCache(llava.model.config, keep_ratio=0.3, select=select)
    with attach(llava.model):
        with pytest.raises(KeyboardInterrupt):
            llava.model.generate(**llava.prompts(1), past_key_values=cache, max_new_tokens=2)
        assert (cache.get_seq_length(), cache.prompt, cache.is_attached) == (0, None, False)
        llava.model.generate(**llava.prompts(2), past_key_values=cache, max_new_tokens=2)
    assert cache.prompt_length == llava.prompts(2)["input_ids"].shape[1]


def test_failed_compression_empties_the_cache(llava: Family) -> None:
    calls = []

    def select(scores: torch.Tensor, visual_mask: torch.Tensor, budget: int) -> torch.Tensor:
        calls.append(budget)
        first = torch.arange(budget).expand(len(scores), -1)
        return first if len(calls) == 1 else first + scores.shape[1]

    cache = MedaCache(llava.model.config, keep_ratio=0.3, select=select)
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(1), past_key_values=cache)
        with pytest.raises(ValueError, match="ascending positions below"):
            cache.compress()
        assert cache.get_seq_length() == 0
        llava.model(**llava.prompts(1), past_key_values=cache)


def test_expect_what_contradicts_itself(llava: Family) -> None:
    cache = MedaCache(llava.model.config)
    with pytest.raises(ValueError, match=r"`visual_mask` of shape \(batch_size, 5\), got \(1, 4\)"):
        cache.expect(5, visual_mask=torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="longer than the 0 tokens seen, got None"):
        cache.expect()


def test_a_ratio_for_a_cache_that_keeps_everything(llava: Family) -> None:
    cache = MedaCache(llava.model.config, preset="none")
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(1), past_key_values=cache)
    with pytest.raises(ValueError, match="`keep_ratio` below 1, which takes statistics"):
        cache.compress(0.2)


def test_merge_in_unrotated_space_and_what_it_does_not_go_with() -> None:
    with pytest.raises(ValueError, match=r'`merge_space="rotated"`'):
        CompressionConfig(merge_space="unrotated", recompress="each_prefill")


def test_not_a_model() -> None:
    with pytest.raises(TypeError, match="Expected a transformers model"):
        attach(nn.Linear(2, 2))


def test_unsupported_attention_implementation(llava: Family) -> None:
    llava.model.set_attn_implementation({"text_config": "flex_attention"})
    try:
        with pytest.raises(ValueError, match="'flex_attention'"):
            attach(llava.model)
    finally:
        llava.model.set_attn_implementation("sdpa")


class OwnAttention(nn.Module):
    """Attention that looks nothing up."""


class OwnModel(PreTrainedModel):
    """A model that computes attention in its own code, as remote-code models do."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.attention = OwnAttention()


def test_model_without_attention_interface() -> None:
    config = PreTrainedConfig()
    config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="attention goes through `AttentionInterface`, got OwnModel"):
        attach(OwnModel(config))


def test_one_modality_has_no_cross_modal_entropy() -> None:
    states = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match="4 text and 0 visual"):
        cross_modal_entropy(states, states, torch.zeros(4, dtype=torch.bool))


def test_bad_budgets() -> None:
    for weights in ([float("nan"), 1.0], [-1.0, 1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="Expected `weights`"):
            allocate_budgets(torch.tensor(weights), 4, maximum=4)
    with pytest.raises(ValueError, match="minimum=5"):
        allocate_budgets(torch.ones(2), 4, minimum=5, maximum=4)
    with pytest.raises(ValueError, match="for seq_len 4"):
        select_tokens(torch.zeros(1, 4), torch.zeros(4, dtype=torch.bool), num_recent=3, num_important=2)
