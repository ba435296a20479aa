"""How a prompt comes: whole, in pieces, with drafted tokens behind it, as embeddings, and in several turns."""

from typing import Any

import pytest
import torch

from meda_cache import MedaCache, attach, detach
from meda_cache.layer import MedaLayer
from meda_cache.prompt import Prompt
from support.tiny_decoders import IMAGE_TOKEN, Family, MaskedFullCache, build_family

OPTIONS: dict[str, dict[str, Any]] = {
    "meda": {"preset": "meda"},
    "balanced": {"preset": "balanced"},
    "snapkv": {"preset": "snapkv", "window_size": 7, "num_recent": 5},
    "causal": {"preset": "meda", "causal": True, "normalize": True},
    "full": {"preset": "meda", "entropy": "full", "head_reduction": "mean_entropy", "score": "mean"},
    "unrotated": {"preset": "meda", "merge_space": "unrotated"},
}


def kept_positions(cache: MedaCache) -> list[torch.Tensor | None]:
    return [layer.positions for layer in cache.managed_layers.values()]


def read_in_pieces(family: Family, inputs: dict[str, torch.Tensor], cuts: list[int], **options: Any) -> MedaCache:
    """Reads the ids (and images, where a piece has their tokens) from one cut to the next."""
    cache = MedaCache(family.model.config, keep_ratio=0.3, **options)
    input_ids, pixels, length = inputs["input_ids"], inputs.get("pixel_values"), inputs["input_ids"].shape[1]
    cache.expect(length)
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        piece = {"input_ids": input_ids[:, start:end], "attention_mask": inputs["attention_mask"][:, :end]}
        before, after = (int((input_ids[:, :at] == IMAGE_TOKEN).sum()) // 16 for at in (start, end))
        if pixels is not None and after > before:
            piece["pixel_values"] = pixels[before:after]
        family.model(**piece, past_key_values=cache)
    return cache


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pieces_of_a_prompt_equal_the_whole(llava: Family, options: dict[str, Any]) -> None:
    inputs = llava.prompts(3)
    first = int((inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    with attach(llava.model), torch.no_grad():
        whole = read_in_pieces(llava, inputs, [], **options)
        pieces = read_in_pieces(llava, inputs, [first + 16, first + 16 + 19], **options)
        logits = [llava.model(input_ids=torch.tensor([[5]]), past_key_values=c).logits for c in (whole, pieces)]
    assert whole.is_compressed
    assert [layer.budget for layer in whole.stats().layers] == [layer.budget for layer in pieces.stats().layers]
    for one, other in zip(kept_positions(whole), kept_positions(pieces), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_chunked_prefill_of_generate_equals_one_forward(options: dict[str, Any]) -> None:
    model = build_family("llama").model
    prompt = torch.randint(3, 90, (2, 45), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    results = []
    with attach(model):
        for chunk in (None, 16):
            cache = MedaCache(model.config, keep_ratio=0.3, **options)
            results.append(
                model.generate(
                    prompt,
                    attention_mask=mask,
                    past_key_values=cache,
                    prefill_chunk_size=chunk,
                    max_new_tokens=8,
                    do_sample=False,
                )
            )
    assert torch.equal(*results)


def test_a_declared_prompt_is_written_into_one_buffer() -> None:
    model = build_family("llama").model
    cache = MedaCache(model.config, keep_ratio=1.0)
    pointers = []
    with attach(model), torch.no_grad():
        cache.expect(40)
        for start in range(0, 40, 10):
            model(input_ids=torch.arange(start + 3, start + 13)[None], past_key_values=cache)
            pointers.append(cache.layers[0].keys.data_ptr())
        for token in range(5):
            model(input_ids=torch.tensor([[token + 3]]), past_key_values=cache)
            pointers.append(cache.layers[0].keys.data_ptr())
    assert len(set(pointers)) == 1


@pytest.mark.parametrize("preset", ["meda", "balanced", "snapkv", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_prompt_lookup_equals_greedy(preset: str, seed: int) -> None:
    model = build_family("llama").model
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(3, 12, (1, 40), generator=generator)  # few ids: many drafts, some of them right
    options: dict[str, Any] = {"max_new_tokens": 15, "do_sample": False}
    with attach(model):
        ratio = {} if preset == "none" else {"keep_ratio": 0.3}
        caches = [MedaCache(model.config, preset=preset, **ratio) for _ in range(2)]
        greedy = model.generate(prompt, past_key_values=caches[0], **options)
        lookup = model.generate(prompt, past_key_values=caches[1], prompt_lookup_num_tokens=3, **options)
    assert torch.equal(greedy, lookup)
    for one, other in zip(kept_positions(caches[0]), kept_positions(caches[1]), strict=True):
        assert one is None or torch.equal(one, other)


def test_drafts_after_a_turn_are_no_turn_of_their_own() -> None:
    model = build_family("llama").model
    prompt = torch.randint(3, 12, (1, 40), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"max_new_tokens": 15, "do_sample": False}
    with attach(model):
        caches = [MedaCache(model.config, keep_ratio=0.3, recompress="each_prefill") for _ in range(2)]
        greedy = model.generate(prompt, past_key_values=caches[0], **options)
        lookup = model.generate(prompt, past_key_values=caches[1], prompt_lookup_num_tokens=3, **options)
    assert torch.equal(greedy, lookup)
    assert caches[0].prompt_length == caches[1].prompt_length == 40


def test_declared_mask_of_prompts_goes_to_all_their_beams(llava: Family) -> None:
    inputs, seen = llava.prompts(2), []
    model, options = llava.model, {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with attach(model), torch.no_grad():
        by_ids = MedaCache(model.config, preset="meda", keep_ratio=0.3)
        tokens = model.generate(**inputs, past_key_values=by_ids, **options)
        hook.remove()
        by_embeds = MedaCache(model.config, preset="meda", keep_ratio=0.3)
        by_embeds.expect(visual_mask=inputs["input_ids"] == IMAGE_TOKEN)
        again = model.generate(inputs_embeds=seen[0][:1], past_key_values=by_embeds, **options)
    assert torch.equal(again, tokens[:, inputs["input_ids"].shape[1] :])


def test_assisted_decoding_equals_greedy() -> None:
    model = build_family("llama").model
    torch.manual_seed(3)
    assistant = type(model)(model.config).eval()
    prompt = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    with attach(model):
        caches = [MedaCache(model.config, keep_ratio=0.3) for _ in range(2)]
        greedy = model.generate(prompt, past_key_values=caches[0], **options)
        assisted = model.generate(prompt, past_key_values=caches[1], assistant_model=assistant, **options)
    assert torch.equal(greedy, assisted)


def test_embeddings_with_a_declared_visual_mask_equal_ids(llava: Family) -> None:
    inputs = llava.prompts(2)
    model, seen = llava.model, {}
    with attach(model), torch.no_grad():
        by_ids = MedaCache(model.config, preset="meda", keep_ratio=0.3)
        decoder = model.model.language_model
        hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
        model(**inputs, past_key_values=by_ids)
        hook.remove()
        by_ids.compress()
        by_embeds = MedaCache(model.config, preset="meda", keep_ratio=0.3)
        by_embeds.expect(visual_mask=inputs["input_ids"] == IMAGE_TOKEN)
        model(inputs_embeds=seen["inputs_embeds"], past_key_values=by_embeds)
    assert by_embeds.is_compressed
    for one, other in zip(kept_positions(by_ids), kept_positions(by_embeds), strict=True):
        assert torch.equal(one, other)


def test_commit_after_the_prefill_keeps_a_later_question_whole(llava: Family) -> None:
    """Question-agnostic: the question has no say, and every token of it stays."""
    inputs = llava.prompts(2)
    question = torch.tensor([[7, 8, 9, 10]])
    both = torch.cat([inputs["input_ids"], question], dim=1)
    context_length = inputs["input_ids"].shape[1]
    with attach(llava.model), torch.no_grad():
        agnostic = MedaCache(llava.model.config, keep_ratio=0.3, commit="prefill")
        llava.model(**inputs, past_key_values=agnostic)
        assert agnostic.is_compressed
        llava.model.generate(both, past_key_values=agnostic, max_new_tokens=3, min_new_tokens=3)
        aware = MedaCache(llava.model.config, keep_ratio=0.3)
        llava.model.generate(
            both, pixel_values=inputs["pixel_values"], past_key_values=aware, max_new_tokens=3, min_new_tokens=3
        )
    assert agnostic.prompt_length == context_length
    assert aware.prompt_length == context_length + 4
    assert sum(layer.budget[0] for layer in agnostic.stats().layers) == int(0.3 * 4 * context_length + 0.5)
    assert sum(layer.budget[0] for layer in aware.stats().layers) == int(0.3 * 4 * (context_length + 4) + 0.5)


def read_turn(family: Family, cache: MedaCache, tokens: torch.Tensor, pixels: torch.Tensor) -> None:
    family.model(input_ids=tokens, pixel_values=pixels, past_key_values=cache)


def test_second_turn_with_new_images_is_kept_whole(llava: Family) -> None:
    first, second = llava.prompts(2), llava.prompts(1, seed=7)
    with attach(llava.model), torch.no_grad():
        cache = MedaCache(llava.model.config, keep_ratio=0.3)
        llava.model.generate(**first, past_key_values=cache, max_new_tokens=3, min_new_tokens=3)
        before, seen = [layer.physical_length for layer in cache.managed_layers.values()], cache.get_seq_length()
        llava.model(input_ids=second["input_ids"], pixel_values=second["pixel_values"], past_key_values=cache)
    new = second["input_ids"].shape[1]
    assert cache.get_seq_length() == seen + new
    assert [layer.physical_length for layer in cache.managed_layers.values()] == [length + new for length in before]


@pytest.mark.parametrize("options", [{"preset": "meda"}, {"preset": "snapkv"}], ids=["meda", "snapkv"])
def test_second_turn_can_be_compressed_with_the_first(llava: Family, options: dict[str, Any]) -> None:
    first, second = llava.prompts(2), llava.prompts(2, seed=7)
    with attach(llava.model), torch.no_grad():
        cache = MedaCache(llava.model.config, keep_ratio=0.3, recompress="each_prefill", **options)
        answer = llava.model.generate(**first, past_key_values=cache, max_new_tokens=3, min_new_tokens=3)
        kept = [set(layer.positions[0, 0].tolist()) for layer in cache.managed_layers.values()]
        turn = torch.cat([answer, second["input_ids"]], dim=1)
        llava.model.generate(
            turn, pixel_values=second["pixel_values"], past_key_values=cache, max_new_tokens=3, min_new_tokens=3
        )
    length = turn.shape[1]
    budgets = [layer.budget[0] for layer in cache.stats().layers]
    assert sum(budgets) == int(0.3 * 4 * length + 0.5)
    assert cache.prompt_length == length
    for before, budget, layer in zip(kept, budgets, cache.managed_layers.values(), strict=True):
        positions = layer.positions[0, 0].tolist()
        assert positions == sorted(positions)
        assert len(positions) == budget
        assert {position for position in positions if position < first["input_ids"].shape[1]} <= before
        assert layer.physical_length == budget + 2  # two of the three new tokens have been fed back
        assert any(position >= answer.shape[1] for position in positions)


def test_recompressed_turns_equal_masked_evicted_slots() -> None:
    """Attention after a second compression sees the kept slots at their true positions, and nothing else."""
    family = build_family("llama")
    model = family.model
    tokens = torch.randint(3, 90, (1, 60), generator=torch.Generator().manual_seed(0))
    cache = MedaCache(model.config, preset="h2o", keep_ratio=0.9, recompress="each_prefill", commit="prefill")
    with attach(model), torch.no_grad():
        model(input_ids=tokens[:, :40], past_key_values=cache)
        model(input_ids=tokens[:, 40:], past_key_values=cache)  # sees what was kept of the first turn
        kept = {index: layer.positions for index, layer in cache.managed_layers.items()}
        ours = model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache).logits
    assert max(int(positions.max()) for positions in kept.values()) == 59
    model.set_attn_implementation("oracle")
    # A full cache whose second turn saw the first one's kept slots only has the same keys; then the same are hidden.
    first = MedaCache(model.config, preset="h2o", keep_ratio=0.9, commit="prefill")
    model.set_attn_implementation("sdpa")
    with attach(model), torch.no_grad():
        model(input_ids=tokens[:, :40], past_key_values=first)
    early = {index: layer.positions for index, layer in first.managed_layers.items()}
    model.set_attn_implementation("oracle")
    oracle = MaskedFullCache(model.config, early, 40)
    with torch.no_grad():
        model(input_ids=tokens[:, :40], past_key_values=oracle)
        model(input_ids=tokens[:, 40:], past_key_values=oracle)
        for index, positions in kept.items():
            visible = torch.zeros(1, positions.shape[1], 60, dtype=torch.bool)
            oracle.visible[index] = visible.scatter(-1, positions.long(), True)
        expected = model(input_ids=torch.tensor([[5, 6]]), past_key_values=oracle).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_clones_answer_two_questions_on_one_compressed_context(llava: Family) -> None:
    def read_context() -> MedaCache:
        cache = MedaCache(llava.model.config, keep_ratio=0.3)
        llava.model(**llava.prompts(2), past_key_values=cache)
        cache.compress()
        return cache

    questions = [torch.tensor([[7, 8, 9]]), torch.tensor([[17, 18]])]
    with attach(llava.model), torch.no_grad():
        first = read_context()
        for cache, question in zip([first.clone(), first], questions, strict=True):
            logits = llava.model(input_ids=question, past_key_values=cache).logits
            expected = llava.model(input_ids=question, past_key_values=read_context()).logits
            torch.testing.assert_close(logits, expected)


def test_clones_can_be_compressed_to_several_ratios(llava: Family) -> None:
    with attach(llava.model), torch.no_grad():
        read = MedaCache(llava.model.config, preset="meda")
        llava.model(**llava.prompts(2), past_key_values=read)
        for ratio in (0.5, 0.1):
            cache = read.clone()
            cache.compress(ratio)
            direct = MedaCache(llava.model.config, preset="meda", keep_ratio=ratio)
            llava.model(**llava.prompts(2), past_key_values=direct)
            direct.compress()
            assert [layer.budget for layer in cache.stats().layers] == [
                layer.budget for layer in direct.stats().layers
            ]
            assert torch.equal(cache.layers[1].keys, direct.layers[1].keys)


def test_from_model_attaches_and_is_all_that_is_needed(llava: Family) -> None:
    cache = MedaCache.from_model(llava.model, keep_ratio=0.2)
    llava.model.generate(**llava.prompts(2), past_key_values=cache, max_new_tokens=3, min_new_tokens=3)
    assert cache.stats().is_compressed
    detach(llava.model)
    assert "generate" not in vars(llava.model)


def test_offloaded_layers_come_back_and_go_on(llava: Family) -> None:
    inputs, steps = llava.prompts(1, 2), torch.tensor([[5], [6]])
    results = []
    with attach(llava.model), torch.no_grad():
        for is_offloaded in (False, True):
            cache = MedaCache(llava.model.config, keep_ratio=0.3)
            llava.model(**inputs, past_key_values=cache)
            cache.compress()
            mask = inputs["attention_mask"]
            for _ in range(2):
                mask = torch.cat([mask, torch.ones_like(steps)], dim=1)
                logits = llava.model(input_ids=steps, attention_mask=mask, past_key_values=cache).logits
                for layer in cache.managed_layers.values() if is_offloaded else []:
                    layer.offload()
                    layer.prefetch()
            results.append(logits)
    assert torch.equal(*results)


class Stream:
    """Stands for a stream of a GPU: everything happens at once."""

    def wait_stream(self, other: Any) -> None:
        assert isinstance(other, Stream)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: Any) -> None: ...


@pytest.mark.parametrize("options", [{"preset": "meda"}, {"recompress": "each_prefill"}], ids=str)
def test_generating_with_offloading_equals_generating_without(
    llava: Family, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own offloading, with streams that are none: a layer leaves after its turn and comes back."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    moves: list[tuple[str, int]] = []
    for name in ("offload", "prefetch"):
        monkeypatch.setattr(MedaLayer, name, record_moves(getattr(MedaLayer, name), name, moves))
    inputs, results = llava.prompts(1, 3), []
    with attach(llava.model):
        for offloading in (False, True):
            cache = MedaCache(llava.model.config, keep_ratio=0.3, offloading=offloading, **options)
            first = llava.model.generate(**inputs, past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
            turn = torch.cat([first, torch.tensor([[7, 8, 9]] * 2)], dim=1)
            mask = torch.nn.functional.pad(
                inputs["attention_mask"], (0, turn.shape[1] - inputs["input_ids"].shape[1]), value=1
            )
            results.append(llava.model.generate(turn, attention_mask=mask, past_key_values=cache, max_new_tokens=4))
    assert torch.equal(*results)
    assert [index for name, index in moves if name == "offload"][:8] == [0, 1, 2, 3] * 2
    assert [index for name, index in moves if name == "prefetch"][:8] == [1, 2, 3, 0] * 2


def record_moves(move: Any, name: str, moves: list[tuple[str, int]]) -> Any:
    def recorded(layer: MedaLayer) -> None:
        moves.append((name, layer.layer_idx))
        move(layer)
        assert name == "prefetch" or layer._key_buffer is None, "room for tokens to come stays nowhere"

    return recorded


def test_images_are_runs_of_visual_tokens() -> None:
    visual = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 1, 0]]).bool()
    prompt = Prompt(visual, torch.ones_like(visual))
    assert prompt.image_index.tolist() == [[0, 0, -1, 1, -1, -1, 2], [-1, 0, 0, 0, -1, 1, -1]]
