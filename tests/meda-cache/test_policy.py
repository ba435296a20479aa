"""Presets and options: what each keeps, and that every budget adds up."""

import math
from typing import Any

import pytest
import torch

from meda_cache import PRESETS, CompressionConfig, MedaCache, attach
from meda_cache.allocation import weigh_layers
from meda_cache.functional.scores import pool_window_mass, rank_within_images
from meda_cache.policy import select_slots
from support.tiny_decoders import Family, build_family


def compress(family: Family, inputs: dict[str, torch.Tensor], **options: Any) -> MedaCache:
    cache = MedaCache(family.model.config, **options)
    with attach(family.model), torch.no_grad():
        family.model(**inputs, past_key_values=cache)
        cache.compress()
    return cache


@pytest.mark.parametrize("ratio", [0.07, 0.33, 0.9])
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_budgets_of_every_preset_add_up(llava: Family, preset: str, ratio: float) -> None:
    inputs = llava.prompts(1, 3)
    cache = compress(llava, inputs, preset=preset, keep_ratio=ratio)
    stats = cache.stats()
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        floor = 4 * 5 if preset == "streaming_llm" else 4  # sinks and one more, in four layers
        budgets = [layer.budget[row] for layer in stats.layers]
        assert sum(budgets) == max(math.floor(ratio * 4 * length + 0.5), floor)
    assert stats.requested == [math.floor(ratio * 4 * n + 0.5) for n in inputs["attention_mask"].sum(dim=1).tolist()]


def test_streaming_keeps_sinks_and_the_last_tokens(llava: Family) -> None:
    cache = compress(llava, llava.prompts(2), preset="streaming_llm", keep_ratio=0.25)
    length = cache.get_seq_length()
    for layer in cache.managed_layers.values():
        recent = layer.num_kept - 4
        assert layer.positions[0, 0].tolist() == [0, 1, 2, 3, *range(length - recent, length)]


def test_window_presets_keep_the_window(llava: Family) -> None:
    for preset in ("snapkv", "pyramidkv"):
        cache = compress(llava, llava.prompts(3), preset=preset, keep_ratio=0.7, window_size=8, num_recent=8)
        length = cache.get_seq_length()
        for layer in cache.managed_layers.values():
            window = min(8, layer.num_kept)  # the last layer of a pyramid may hold less
            assert all(head[-window:] == list(range(length - window, length)) for head in layer.positions[0].tolist())


def test_pyramid_falls_linearly_and_keeps_the_mean() -> None:
    weights = weigh_layers(torch.zeros(5, dtype=torch.float64), CompressionConfig(allocation="pyramid"))
    assert weights.diff().tolist() == pytest.approx([float(weights[1] - weights[0])] * 4)
    assert float(weights[0] / weights[-1]) == pytest.approx((2 - 1 / 20) * 20)
    assert float(weights.mean()) == pytest.approx(0.2)


def test_own_weights_are_one_for_each_layer() -> None:
    assert weigh_layers(torch.zeros(2), CompressionConfig(allocation=[1, 3])).tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match=r"one weight for each of the 3 layers, got shape \(2,\)"):
        weigh_layers(torch.zeros(3), CompressionConfig(allocation=[1, 3]))


def test_random_scores_depend_on_seed_and_layer_alone(llava: Family) -> None:
    first, again, other = (
        compress(llava, llava.prompts(2), preset="random", keep_ratio=0.3, seed=seed) for seed in (1, 1, 2)
    )
    layers = list(first.managed_layers)
    assert all(torch.equal(first.layers[i].positions, again.layers[i].positions) for i in layers)
    assert not any(torch.equal(first.layers[i].positions, other.layers[i].positions) for i in layers)
    assert not torch.equal(first.layers[0].positions, first.layers[1].positions)


def test_temperature_flattens_and_sharpens(llava: Family) -> None:
    def spread(temperature: float) -> int:
        cache = compress(llava, llava.prompts(3), preset="meda", keep_ratio=0.3, temperature=temperature)
        budgets = [layer.budget[0] for layer in cache.stats().layers]
        return max(budgets) - min(budgets)

    assert spread(100.0) <= 1 < spread(1.0) < spread(0.1)


def test_protected_text_is_kept_whole_and_others_pay(llava: Family) -> None:
    inputs = llava.prompts(3)
    num_text = int((inputs["input_ids"] != 90).sum())
    cache = compress(llava, inputs, preset="meda", text_policy="protect", keep_ratio=0.5, allocation=[1, 1, 1, 20])
    stats = cache.stats()
    assert all(layer.kept_text == [num_text] for layer in stats.layers)
    assert sum(layer.budget[0] for layer in stats.layers) == stats.requested[0]
    assert stats.overflow == [0]


def test_protected_text_beyond_the_budget_is_reported(llava: Family) -> None:
    inputs = llava.prompts(3)
    num_text = int((inputs["input_ids"] != 90).sum())
    cache = compress(llava, inputs, preset="meda", text_policy="protect", keep_ratio=0.1)
    stats = cache.stats()
    assert [layer.budget for layer in stats.layers] == [[num_text]] * 4
    assert stats.overflow == [4 * num_text - stats.requested[0]]
    assert stats.overflow[0] > 0
    assert stats.to_dict()["overflow"] == stats.overflow


def test_scope_layer_keeps_the_same_tokens_in_all_heads(llava: Family) -> None:
    by_head = compress(llava, llava.prompts(3), preset="h2o", keep_ratio=0.3)
    by_layer = compress(llava, llava.prompts(3), preset="h2o", keep_ratio=0.3, scope="layer")
    assert not all(torch.equal(x.positions[:, 0], x.positions[:, 1]) for x in by_head.managed_layers.values())
    assert all(torch.equal(x.positions[:, 0], x.positions[:, 1]) for x in by_layer.managed_layers.values())


def test_per_image_takes_from_all_images_alike(llava: Family) -> None:
    inputs = llava.prompts(3)
    options: dict[str, Any] = {"preset": "h2o", "keep_ratio": 0.3, "recent_fraction": 0.0}
    cache = compress(llava, inputs, **options, per_image=True)
    assert cache.prompt is not None
    image_index = cache.prompt.image_index[0]
    for layer in cache.managed_layers.values():
        for head in layer.positions[0]:
            counts = [int((image_index[head.long()] == image).sum()) for image in range(3)]
            assert max(counts) - min(counts) <= 1


def test_rank_within_images_by_hand() -> None:
    """Two images of 2 and 4 tokens and 2 of text: first of each at half its share, and so on."""
    image_index = torch.tensor([[0, 0, -1, 1, 1, 1, 1, -1]])
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.3, 0.8, 0.2, 0.7, 0.4]])
    order = rank_within_images(scores, image_index).argsort(descending=True)[0].tolist()
    # Shares: text 0.25 (2), 0.75 (7); image 0: 0.25 (1), 0.75 (0); image 1: 1/8 (4), 3/8 (6), 5/8 (3), 7/8 (5)
    assert order == [4, 1, 2, 6, 3, 7, 0, 5]


def test_window_scores_by_hand() -> None:
    mass = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    scores = pool_window_mass(mass, 3)
    before = torch.cat([torch.zeros(2, 2), mass[:, :9], torch.zeros(2, 2)], dim=1)  # neighbours beyond the ends are 0
    means = [[sum(row[at : at + 5]) / 5 for at in range(9)] for row in before.tolist()]
    torch.testing.assert_close(scores[:, :9], torch.tensor(means))
    assert float(scores[:, 9:].min()) > float(scores[:, :9].max())


def test_own_selection_and_merge_are_used_and_checked(llava: Family) -> None:
    def last(scores: torch.Tensor, visual_mask: torch.Tensor, budget: int) -> torch.Tensor:
        return torch.arange(scores.shape[1])[-budget:].expand(len(scores), -1)

    def double(keys: torch.Tensor, values: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = kept[..., None].expand(-1, -1, keys.shape[-1])
        return 2 * keys.gather(1, index), values.gather(1, index)

    own = compress(llava, llava.prompts(1), preset="h2o", select=last, merge=double)
    plain = compress(llava, llava.prompts(1), preset="h2o", recent_fraction=1.0)
    assert torch.equal(own.layers[0].positions, plain.layers[0].positions)
    torch.testing.assert_close(own.layers[0].keys, 2 * plain.layers[0].keys)
    with pytest.raises(ValueError, match=r"`select` to return ascending positions below 28 of shape \(2, "):
        compress(llava, llava.prompts(1), select=lambda scores, visual_mask, budget: torch.zeros(2, budget).long())
    with pytest.raises(ValueError, match="`merge` to return keys and values of shapes"):
        compress(llava, llava.prompts(1), merge=lambda keys, values, kept: (keys, values))


@pytest.mark.parametrize("name", ["llama", "qwen2_5_vl", "gemma3"])
def test_unrotated_merge_averages_keys_without_position(named_family: Any, name: str) -> None:
    """Where all keys are the same before the rotary embedding, so they are after the merge, each at its position."""
    family = named_family(name)
    inputs = family.prompts(2)
    attention = next(m for m in family.model.modules() if hasattr(m, "k_proj") and hasattr(m, "layer_idx"))
    hook = attention.k_proj.register_forward_hook(lambda module, args, output: torch.ones_like(output))
    options: dict[str, Any] = {"preset": "uniform", "keep_ratio": 0.3}
    rotated = compress(family, inputs, **options)
    unrotated = compress(family, inputs, **options, merge_space="unrotated")
    evicted = compress(family, inputs, **options, merge="none")
    hook.remove()
    index = attention.layer_idx
    assert sum(unrotated.stats().layers[index].merged) > 0
    torch.testing.assert_close(unrotated.layers[index].keys, evicted.layers[index].keys, atol=1e-5, rtol=1e-4)
    assert (rotated.layers[index].keys - evicted.layers[index].keys).abs().max() > 1e-2


def test_unrotated_merge_equals_a_loop_that_turns_keys_back(named_family: Any) -> None:
    """Llama's rotary embedding as complex numbers in float64: turned back, averaged with the nearest, turned again."""
    family = named_family("llama")
    inputs = family.prompts(2)
    full = compress(family, inputs, preset="none")
    cache = compress(family, inputs, preset="uniform", keep_ratio=0.3, merge_space="unrotated")
    keys, kept = full.layers[1].keys[0].double(), cache.layers[1].positions[0].long()
    num_heads, seq_len, dim = keys.shape
    frequency = family.model.config.rope_parameters["rope_theta"] ** -(torch.arange(0, dim, 2).double() / dim)
    turn = torch.polar(torch.ones(()).double(), torch.arange(seq_len)[:, None] * frequency)
    for head in range(num_heads):
        plain = torch.complex(keys[head, :, : dim // 2], keys[head, :, dim // 2 :]) / turn
        unit = torch.nn.functional.normalize(torch.cat([plain.real, plain.imag], dim=1), dim=-1)
        members = {int(position): [int(position)] for position in kept[head]}
        for token in sorted(set(range(seq_len)) - set(members)):
            nearest = int((unit[kept[head]] @ unit[token]).argmax())
            members[int(kept[head, nearest])].append(token)
        for slot, position in enumerate(kept[head].tolist()):
            merged = plain[members[position]].mean(dim=0) * turn[position]
            expected = torch.cat([merged.real, merged.imag])
            torch.testing.assert_close(cache.layers[1].keys[0, head, slot].double(), expected, atol=1e-5, rtol=1e-4)


def test_similarity_threshold_drops_what_is_far(llava: Family) -> None:
    def count(threshold: Any) -> float:
        cache = compress(llava, llava.prompts(3), preset="meda", similarity_threshold=threshold)
        return sum(layer.merged[0] for layer in cache.stats().layers)

    merged = [count(threshold) for threshold in (None, 0.5, "mean", 1.1)]
    assert merged[0] > merged[1] > 0
    assert merged[0] > merged[2] > 0
    assert merged[3] == 0


def test_entropy_query_limit_takes_fewer_rows(llava: Family) -> None:
    inputs = llava.prompts(3)
    entropies = [
        [x.entropy[0] for x in compress(llava, inputs, preset="meda", entropy_query_limit=limit).stats().layers]
        for limit in (None, 1000, 5)
    ]
    assert entropies[0] == entropies[1]
    assert entropies[0] != entropies[2]
    assert entropies[2] == pytest.approx(entropies[0], rel=0.5)


def test_min_tokens_is_a_floor_for_every_layer(llava: Family) -> None:
    cache = compress(llava, llava.prompts(3), preset="meda", keep_ratio=0.2, allocation=[0, 0, 0, 1], min_tokens=7)
    assert [layer.budget[0] for layer in cache.stats().layers][:3] == [7, 7, 7]


def test_select_slots_keeps_the_very_last_where_protected_text_leaves_room() -> None:
    image_index = torch.tensor([[-1, -1, 0, 0, 0, 0]])
    config = CompressionConfig(text_policy="protect", recent_fraction=1.0)
    assert select_slots(torch.zeros(1, 6), image_index, 4, config).tolist() == [[0, 1, 4, 5]]


def test_presets_are_complete_and_say_their_names() -> None:
    assert list(PRESETS) == [
        *("meda", "balanced", "lookm", "h2o", "snapkv", "pyramidkv", "streaming_llm", "uniform", "random", "none")
    ]
    assert CompressionConfig.from_preset("meda") == CompressionConfig()
    with pytest.raises(ValueError, match=r"one of meda, balanced.*got 'h3o'"):
        CompressionConfig.from_preset("h3o")
    with pytest.raises(ValueError, match=r'preset "none", which keeps everything, got 0.2'):
        CompressionConfig.from_preset("none", keep_ratio=0.2)


def test_text_only_model_takes_every_preset() -> None:
    family = build_family("qwen3")
    for preset in PRESETS:
        cache = compress(family, family.prompts(4), preset=preset)
        assert cache.is_compressed
