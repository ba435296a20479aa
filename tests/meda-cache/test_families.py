"""What must hold on every family of models: the oracle, equality with DynamicCache, and rows of a padded batch."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from meda_cache import MedaCache, attach
from support.tiny_decoders import FIND_POSITIONS, TEXT_ONLY, Family, MaskedFullCache, run_steps

BATCHES = {"B1": (2,), "B3-padded": (1, 3, 2)}
# Oracle and equality cover both implementations; where images change nothing about the cache one is enough.
IMPLEMENTATIONS = ["sdpa", "eager"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("counts", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_equals_a_full_cache_with_the_evicted_slots_masked(
    family: Family, counts: tuple[int, ...], chunk: int, implementation: str
) -> None:
    """The oracle: positions, masks, GQA and per-layer lengths are right if and only if the logits agree."""
    model, inputs = family.model, family.prompts(*counts)
    steps = torch.randint(3, 90, (len(counts), 6), generator=torch.Generator().manual_seed(1))
    model.set_attn_implementation(implementation)
    cache = MedaCache(
        model.config,
        keep_ratio=0.4,
        allocation=lambda entropy: torch.arange(1, len(entropy) + 1),
        recent_fraction=0.3,
        text_policy="none",
        merge="none",
    )
    with attach(model):
        compressed = run_steps(family, inputs, cache, steps, chunk)
    lengths = {layer.physical_length for layer in cache.managed_layers.values()}
    assert len(lengths) == 4, "all layers should differ in length, or the test shows little"
    kept = {index: layer.positions for index, layer in cache.managed_layers.items() if layer.positions is not None}
    model.set_attn_implementation("oracle")
    oracle = MaskedFullCache(model.config, kept, inputs["input_ids"].shape[1])
    expected = run_steps(family, inputs, oracle, steps, chunk)
    model.set_attn_implementation("sdpa")
    full = run_steps(family, inputs, DynamicCache(config=model.config), steps, chunk)
    for ours, theirs in zip(compressed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(compressed[0], full[0], atol=1e-4, rtol=1e-4)  # the prompt is read with full attention
    assert (compressed[-1] - full[-1]).abs().max() > 1e-2, "eviction should be visible, or the test shows little"


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0},
    ],
    ids=["beam", "sample"],
)
def test_several_sequences_equal_those_of_the_oracle(family: Family, options: dict[str, Any]) -> None:
    """Beams are reordered, and all sequences of a prompt see what was kept of it."""
    model, inputs = family.model, family.prompts(1, 3)
    options = {**options, "max_new_tokens": 6, "min_new_tokens": 6}
    cache = MedaCache(model.config, preset="h2o", keep_ratio=0.4)
    torch.manual_seed(5)
    with attach(model):
        tokens = model.generate(**inputs, past_key_values=cache, **options)
    kept = {index: layer.positions for index, layer in cache.managed_layers.items()}
    assert {len(positions) for positions in kept.values()} == {6}
    model.set_attn_implementation("oracle")
    oracle = MaskedFullCache(model.config, kept, inputs["input_ids"].shape[1])
    torch.manual_seed(5)
    expected = model.generate(**inputs, past_key_values=oracle, **options)
    model.set_attn_implementation("sdpa")
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0},
    ],
    ids=["greedy", "beam", "sample"],
)
def test_keep_ratio_1_is_token_identical_to_dynamic_cache(
    family: Family, options: dict[str, Any], implementation: str
) -> None:
    model, inputs = family.model, family.prompts(1, 3)
    model.set_attn_implementation(implementation)
    torch.manual_seed(5)
    expected = model.generate(**inputs, max_new_tokens=6, **options)
    torch.manual_seed(5)
    with attach(model):
        cache = MedaCache(model.config, preset="none")
        tokens = model.generate(**inputs, past_key_values=cache, max_new_tokens=6, **options)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("options", [{"preset": "meda"}, {"preset": "snapkv", "window_size": 4, "num_recent": 4}])
def test_row_of_a_padded_batch_equals_the_prompt_alone(family: Family, options: dict[str, Any]) -> None:
    inputs, counts = family.prompts(1, 3, 2), (1, 3, 2)
    steps = torch.randint(3, 90, (3, 4), generator=torch.Generator().manual_seed(1))
    with attach(family.model):
        batch_cache = MedaCache(family.model.config, keep_ratio=0.3, **options)
        batch = run_steps(family, inputs, batch_cache, steps, 1)
        for row in range(3):
            alone = take_row(family, inputs, counts, row)
            cache = MedaCache(family.model.config, keep_ratio=0.3, **options)
            logits = run_steps(family, alone, cache, steps[row : row + 1], 1)
            for ours, batched in zip(logits, batch, strict=True):
                torch.testing.assert_close(ours[0], batched[row], atol=1e-4, rtol=1e-4)
            budgets = [layer.budget[0] for layer in cache.stats().layers]
            assert budgets == [layer.budget[row] for layer in batch_cache.stats().layers]


def take_row(
    family: Family, inputs: dict[str, torch.Tensor], counts: tuple[int, ...], row: int
) -> dict[str, torch.Tensor]:
    """Returns one prompt of a batch without its padding."""
    tokens = inputs["attention_mask"][row].bool()
    images = slice(sum(counts[:row]), sum(counts[: row + 1]))
    alone = {}
    for name, tensor in inputs.items():
        if name == "pixel_values" and family.name in ("idefics3", "smolvlm"):
            alone[name] = tensor[row : row + 1, : counts[row]]
        elif name == "pixel_values" and family.name in FIND_POSITIONS:
            alone[name] = tensor.unflatten(0, (-1, 16))[images].flatten(0, 1)
        elif name in ("pixel_values", "image_grid_thw", "image_sizes"):
            alone[name] = tensor[images]
        else:
            alone[name] = tensor[row : row + 1, tokens]
    return alone


def test_stats_tell_modalities_apart(family: Family) -> None:
    inputs = family.prompts(1, 3)
    with attach(family.model), torch.no_grad():
        cache = MedaCache(family.model.config, preset="meda", keep_ratio=0.5)
        family.model(**inputs, past_key_values=cache)
        uncompressed = cache.stats()
        cache.compress()
    is_text_only = family.name in TEXT_ONLY
    visual = (inputs["input_ids"] == 90).sum(dim=1).tolist()
    assert uncompressed.layers[0].kept_visual == (visual if not is_text_only else [0, 0])
    assert {kind for layer in cache.stats().layers for kind in layer.entropy_kind} == {
        "full" if is_text_only else "cross"
    }


@pytest.mark.parametrize("name", ["gemma3"])
def test_sliding_layers_keep_their_own_class(named_family: Any, name: str) -> None:
    family = named_family(name)
    cache = MedaCache(family.model.config, keep_ratio=0.25)
    with attach(family.model):
        family.model.generate(**family.prompts(3), past_key_values=cache, max_new_tokens=6, min_new_tokens=6)
    assert list(cache.managed_layers) == [0, 1, 3, 4]
    assert [type(layer) for layer in cache.layers[2::3]] == [DynamicSlidingWindowLayer] * 2
