"""Generation with a MedaCache on real models of four families: what is kept, what is stored, which masks result."""

import copy
import gc
import json
import math
import weakref
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from meda_cache import CompressionConfig, MedaCache, attach
from meda_cache.layer import MedaLayer
from meda_cache.prompt import Prompt
from meda_cache.reading import Reading
from support.tiny_decoders import Family, build_family, run_steps


def test_keep_ratio_1_gives_bit_equal_logits(llava: Family) -> None:
    llava.model.set_attn_implementation("eager")
    inputs, steps = llava.prompts(2), torch.tensor([[5, 6, 7]])
    expected = run_steps(llava, inputs, DynamicCache(config=llava.model.config), steps, 1)
    with attach(llava.model):
        logits = run_steps(llava, inputs, MedaCache(llava.model.config, keep_ratio=1), steps, 1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))


def test_permuting_the_batch_permutes_the_output(llava: Family) -> None:
    inputs = llava.prompts(1, 1)
    swapped = {name: tensor.flip(0) for name, tensor in inputs.items()}
    options = {"max_new_tokens": 5, "do_sample": False}
    with attach(llava.model):
        cache, swapped_cache = (MedaCache(llava.model.config, preset="meda", keep_ratio=0.3) for _ in range(2))
        tokens = llava.model.generate(**inputs, past_key_values=cache, **options)
        swapped_tokens = llava.model.generate(**swapped, past_key_values=swapped_cache, **options)
    assert torch.equal(tokens, swapped_tokens.flip(0))


def test_budgets_are_exact_and_stats_say_what_is_stored(family: Family) -> None:
    inputs = family.prompts(1, 3)
    cache = MedaCache(family.model.config, preset="meda", keep_ratio=0.37)
    new_tokens = 5
    with attach(family.model):
        family.model.generate(**inputs, past_key_values=cache, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    stats = cache.stats()
    assert stats.is_compressed
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        assert sum(layer.budget[row] for layer in stats.layers) == int(0.37 * 4 * length + 0.5)
        assert sum(layer.weight[row] for layer in stats.layers) == pytest.approx(1)
    for layer in stats.layers:
        assert layer.logical_length == inputs["input_ids"].shape[1] + new_tokens - 1
        assert layer.physical_length == max(layer.budget) + new_tokens - 1
        assert layer.stored_bytes == 2 * 2 * 2 * layer.physical_length * 8 * 4  # K and V, B, H_kv, length, D, fp32
        for kept_text, kept_visual, budget in zip(layer.kept_text, layer.kept_visual, layer.budget, strict=True):
            assert kept_text + kept_visual == pytest.approx(budget)
    assert stats.stored_bytes == sum(layer.stored_bytes for layer in stats.layers)
    assert str(stats).count("\n") == len(stats.layers)
    assert stats.to_dict()["layers"][0]["budget"] == stats.layers[0].budget


def test_nothing_keeps_the_evicted_part_alive(llava: Family) -> None:
    inputs = llava.prompts(3)
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.2)
    with attach(llava.model), torch.no_grad():
        llava.model(**inputs, past_key_values=cache)
        full = [weakref.ref(layer.keys.untyped_storage()) for layer in cache.managed_layers.values()]
        cache.compress()
    gc.collect()
    assert all(storage() is None for storage in full)
    for layer in cache.managed_layers.values():
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()


def test_new_tokens_are_appended_in_place(llava: Family) -> None:
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.5)
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(2), past_key_values=cache)
        buffers = []
        for token in range(3, 13):
            llava.model(input_ids=torch.tensor([[token]]), past_key_values=cache)
            buffers.append(cache.layers[0].keys.data_ptr())
    assert len(set(buffers)) == 1


def test_second_turn_reads_only_the_new_tokens_at_their_true_positions(llava: Family) -> None:
    inputs = llava.prompts(2)
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3, merge="none")
    seen: list[dict[str, Any]] = []
    with attach(llava.model):
        first = llava.model.generate(**inputs, past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
        length = cache.get_seq_length()
        turn = torch.cat([first, torch.tensor([[7, 8, 9, 10]])], dim=1)
        decoder = llava.model.model.language_model
        hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
        llava.model.generate(input_ids=turn, past_key_values=cache, max_new_tokens=2, min_new_tokens=2)
        hook.remove()
    assert seen[0]["inputs_embeds"].shape[1] == turn.shape[1] - length == 5
    assert seen[0]["position_ids"].tolist() == [list(range(length, length + 5))]


def test_question_after_compressing_the_context_is_kept_whole(llava: Family) -> None:
    inputs = llava.prompts(2)
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.2)
    question = torch.tensor([[7, 8, 9, 10]])
    with attach(llava.model), torch.no_grad():
        llava.model(**inputs, past_key_values=cache)
        cache.compress()
        before = cache.layers[0].physical_length
        both = torch.cat([inputs["input_ids"], question], dim=1)
        llava.model.generate(input_ids=both, past_key_values=cache, max_new_tokens=1)
    assert cache.layers[0].physical_length == before + question.shape[1]


def test_bare_loop_without_positions_equals_generate(llava: Family) -> None:
    inputs = llava.prompts(2)
    with attach(llava.model), torch.no_grad():
        cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        expected = llava.model.generate(**inputs, past_key_values=cache, max_new_tokens=6, do_sample=False)
        cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        logits = llava.model(**inputs, past_key_values=cache).logits
        tokens = []
        for _ in range(6):
            tokens.append(logits[:, -1].argmax(dim=-1, keepdim=True))
            logits = llava.model(input_ids=tokens[-1], past_key_values=cache).logits
    assert torch.equal(torch.cat(tokens, dim=1), expected[:, inputs["input_ids"].shape[1] :])


def test_crop_takes_back_generated_tokens(llava: Family) -> None:
    inputs, steps = llava.prompts(2), torch.tensor([[5, 6, 7, 8]])
    with attach(llava.model), torch.no_grad():
        cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        expected = run_steps(llava, inputs, cache, steps, 1)[-1]
        cache.crop(-2)
        assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 2
        for token in (7, 8):
            logits = llava.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits
        torch.testing.assert_close(logits, expected)
        with pytest.raises(ValueError, match="at most 4 tokens to remove"):
            cache.crop(-5)


def test_batch_can_be_repeated_reordered_and_selected(llava: Family) -> None:
    steps = torch.randint(3, 90, (2, 3), generator=torch.Generator().manual_seed(1))
    inputs = llava.prompts(1, 2)
    with attach(llava.model), torch.no_grad():
        cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        llava.model(**inputs, past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))  # before the compression: statistics must follow
        cache.batch_repeat_interleave(2)
        cache.compress()
        cache.batch_select_indices(torch.tensor([2, 0]))  # back to the first order
        expected = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        llava.model(**inputs, past_key_values=expected)
        expected.compress()
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(steps)], dim=1)
        logits = [
            llava.model(input_ids=steps, attention_mask=mask, past_key_values=c).logits for c in (cache, expected)
        ]
    torch.testing.assert_close(*logits)
    assert [layer.budget for layer in cache.stats().layers] == [layer.budget for layer in expected.stats().layers]


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_reset_makes_the_cache_as_new(named_family: Any, name: str) -> None:
    family = named_family(name)
    cache = MedaCache(family.model.config, preset="meda", keep_ratio=0.3)
    options = {"past_key_values": cache, "max_new_tokens": 5, "do_sample": False}
    with attach(family.model):
        family.model.generate(**family.prompts(3, seed=1), **options)
        cache.reset()
        assert cache.get_seq_length() == 0
        again = family.model.generate(**family.prompts(2), **options)
        options["past_key_values"] = MedaCache(family.model.config, preset="meda", keep_ratio=0.3)
        fresh = family.model.generate(**family.prompts(2), **options)
    assert torch.equal(again, fresh)


def test_deepcopy_answers_two_questions_on_one_compressed_context(llava: Family) -> None:
    def read_context() -> MedaCache:
        cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        llava.model(**llava.prompts(2), past_key_values=cache)
        cache.compress()
        return cache

    questions = [torch.tensor([[7, 8, 9]]), torch.tensor([[17, 18]])]
    with attach(llava.model), torch.no_grad():
        first = read_context()
        caches = [first, copy.deepcopy(first)]
        for cache, question in zip(caches, questions, strict=True):
            logits = llava.model(input_ids=question, past_key_values=cache).logits
            expected = llava.model(input_ids=question, past_key_values=read_context()).logits
            torch.testing.assert_close(logits, expected)


def test_prompt_of_text_only_uses_the_full_entropy(llava: Family) -> None:
    inputs = {"input_ids": torch.arange(3, 40)[None], "attention_mask": torch.ones(1, 37, dtype=torch.long)}
    entropies = []
    for entropy in ("cross", "full"):
        cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3, entropy=entropy)
        with attach(llava.model), torch.no_grad():
            llava.model(**inputs, past_key_values=cache)
            cache.compress()
        layers = cache.stats().layers
        assert all(layer.kept_visual == [0.0] and layer.entropy_kind == ["full"] for layer in layers)
        entropies.append([layer.entropy[0] for layer in layers])
    assert entropies[0] == entropies[1]


def test_mixed_batch_says_which_entropy_each_prompt_has(llava: Family) -> None:
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(0, 2), past_key_values=cache)
        cache.compress()
    assert [layer.entropy_kind for layer in cache.stats().layers] == [["full", "cross"]] * 4


def test_stats_are_json_and_count_spare_slots(llava: Family) -> None:
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3, allocation="uniform")
    with attach(llava.model):
        llava.model.generate(**llava.prompts(2), past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
    stats = json.loads(json.dumps(cache.stats().to_dict(), allow_nan=False))
    assert stats["layers"][0]["entropy"] == [None]
    for layer, number in zip(cache.managed_layers.values(), stats["layers"], strict=True):
        tensors = (layer.keys, layer.values, layer.positions)
        assert number["allocated_bytes"] == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        assert number["allocated_bytes"] > number["stored_bytes"]


def test_inference_mode_and_no_grad_can_follow_each_other(llava: Family) -> None:
    inputs = llava.prompts(2)
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
    with attach(llava.model):
        with torch.inference_mode():
            llava.model(**inputs, past_key_values=cache)
            llava.model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        with torch.no_grad():
            llava.model(input_ids=torch.tensor([[6]]), past_key_values=cache)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 2


def test_a_prompt_that_failed_can_be_read_again(llava: Family) -> None:
    inputs = llava.prompts(2)
    cache = MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
    with attach(llava.model), torch.no_grad():
        with pytest.raises(ValueError, match="Image features and image tokens"):
            llava.model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}, past_key_values=cache)
        again = llava.model(**inputs, past_key_values=cache).logits
        fresh = llava.model(
            **inputs, past_key_values=MedaCache(llava.model.config, preset="meda", keep_ratio=0.3)
        ).logits
    assert torch.equal(again, fresh)


@pytest.mark.parametrize(
    "options", [{"preset": "meda"}, {"preset": "balanced"}, {"recompress": "each_prefill"}], ids=str
)
def test_second_turn_of_a_padded_batch_equals_each_prompt_alone(options: dict[str, Any]) -> None:
    family = build_family("llama")
    inputs = family.prompts(0, 3)
    turn = torch.tensor([[7, 8, 9], [0, 11, 12]])  # the second row has padding in the middle
    turn_mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    rows = []
    with attach(family.model), torch.no_grad():
        cache = MedaCache(family.model.config, keep_ratio=0.4, **options)
        positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        family.model(**inputs, position_ids=positions, past_key_values=cache)
        cache.compress()
        mask = torch.cat([inputs["attention_mask"], turn_mask], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -3:]
        batch = family.model(input_ids=turn, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        for row in range(2):
            alone = MedaCache(family.model.config, keep_ratio=0.4, **options)
            family.model(
                input_ids=inputs["input_ids"][row : row + 1, inputs["attention_mask"][row].bool()],
                past_key_values=alone,
            )
            alone.compress()
            logits = family.model(input_ids=turn[row : row + 1, turn_mask[row].bool()], past_key_values=alone).logits
            torch.testing.assert_close(logits[0, -1], batch[row, -1], atol=1e-4, rtol=1e-4)
            rows.append(alone)
        token = torch.tensor([[13], [14]])  # and it goes on: compressed anew where that is asked for
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        positions = (mask.cumsum(dim=1) - 1)[:, -1:]
        batch = family.model(
            input_ids=token, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits
        for row, alone in enumerate(rows):
            logits = family.model(input_ids=token[row : row + 1], past_key_values=alone).logits
            torch.testing.assert_close(logits[0], batch[row], atol=1e-4, rtol=1e-4)
            budgets = [layer.budget[0] for layer in alone.stats().layers]
            assert budgets == [layer.budget[row] for layer in cache.stats().layers]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_half_precision_models_work(implementation: str) -> None:
    family = build_family("llava")
    model, inputs = copy.deepcopy(family.model).to(torch.bfloat16), family.prompts(1, 3)
    model.set_attn_implementation(implementation)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    cache = MedaCache(model.config, preset="meda", keep_ratio=0.3)
    with attach(model):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
    assert {layer.keys.dtype for layer in cache.managed_layers.values()} == {torch.bfloat16}
    assert all(math.isfinite(entropy) for layer in cache.stats().layers for entropy in layer.entropy)


def test_own_allocation_and_score_are_used(llava: Family) -> None:
    compression = CompressionConfig(
        keep_ratio=0.5,
        allocation=lambda entropy: torch.arange(1, len(entropy) + 1),
        score=lambda key_mass, visual_mask: -torch.arange(key_mass.shape[1]).expand_as(key_mass),
        recent_fraction=0,
        text_policy="none",
        merge="none",
    )
    cache = MedaCache(llava.model.config, compression=compression)
    with attach(llava.model), torch.no_grad():
        llava.model(**llava.prompts(1), past_key_values=cache)
        cache.compress()
    budgets = [layer.budget[0] for layer in cache.stats().layers]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1]
    for budget, layer in zip(budgets, cache.managed_layers.values(), strict=True):
        assert layer.positions[0, 0].tolist() == list(range(budget))


@pytest.mark.parametrize("options", [{"preset": "meda"}, {"preset": "balanced"}, {"preset": "snapkv"}], ids=str)
def test_8192_tokens_need_little_memory_beside_the_cache(options: dict[str, Any]) -> None:
    """One float32 matrix of the scores of one head would be 256 MiB; the largest tensor made is a 128th of that."""
    layer = MedaLayer(CompressionConfig.from_preset(**options, keep_ratio=0.05), 0)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 1, 8192, 16, generator=generator)
    visual_mask = torch.arange(8192)[None] % 64 != 0
    prompt = Prompt(visual_mask, torch.ones_like(visual_mask))
    layer.update(states, states)
    with torch.profiler.profile(profile_memory=True) as profile:
        layer.reading = Reading(prompt, 0, is_whole=True)
        layer.observe(states, states, scaling=None, attention_mask=None)
        layer.complete(prompt)
        layer.compress(prompt, [410])
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 4 * 2**20
    assert layer.physical_length == 410
