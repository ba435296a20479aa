"""Decoding on a compressed cache: a GPU never waits for the host, and what is known of masks is looked up once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from meda_cache import MedaCache, attach
from meda_cache import attachment as attachment_module
from meda_cache.layer import MedaLayer
from meda_cache.ops.statistics import attention_statistics
from meda_cache.upstream import attend_with_lse
from support.kernel_cases import INTERPRETED, require_triton
from support.tiny_decoders import Family, build_family

pytestmark = INTERPRETED

LOOKS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::_is_all_true"}


class Looks(TorchDispatchMode):
    """Counts operations for which the host has to wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in LOOKS
        return func(*args, **(kwargs or {}))


def count_looks(family: Family, inputs: dict[str, Tensor], cache: Any, tokens: int, **options: Any) -> int:
    with Looks() as looks:
        family.model.generate(
            **inputs, past_key_values=cache, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options
        )
    return looks.count


def count_looks_a_token(family: Family, inputs: dict[str, Tensor], build: Any, **options: Any) -> float:
    few, many = (count_looks(family, inputs, build(), tokens, **options) for tokens in (2, 4))
    return (many - few) / 2


@pytest.mark.parametrize(
    ("counts", "options", "implementation", "num_beams"),
    [
        ((2,), {}, "sdpa", 1),
        ((1, 3), {}, "sdpa", 1),
        ((1, 3), {}, "eager", 1),
        ((1, 3), {"preset": "meda"}, "sdpa", 1),
        ((1, 3), {"recompress": "each_prefill"}, "sdpa", 1),
        ((1, 3), {}, "sdpa", 2),
    ],
    ids=["alone", "padded", "eager", "meda", "recompress", "beams"],
)
def test_a_token_costs_no_more_looks_than_with_a_dynamic_cache(
    llava: Family, counts: tuple[int, ...], options: dict[str, Any], implementation: str, num_beams: int
) -> None:
    """transformers looks at the mask and at the end of the sequences once a token; the cache adds nothing to that."""
    inputs = llava.prompts(*counts)
    llava.model.set_attn_implementation(implementation)
    dynamic, ours = (
        count_looks_a_token(llava, inputs, build, num_beams=num_beams)
        for build in (
            lambda: DynamicCache(config=llava.model.config),
            lambda: MedaCache.from_model(llava.model, keep_ratio=0.3, **options),
        )
    )
    assert ours == dynamic


@torch.no_grad()
def test_nothing_of_a_decoding_step_is_read_by_the_host(llava: Family) -> None:
    """On the device `meta` there is nothing to read: also lists made of tensors, which no operation shows, fail."""
    inputs = llava.prompts(1, 3)
    with attach(llava.model):
        cache = MedaCache(llava.model.config, preset="streaming_llm", keep_ratio=0.4)
        llava.model(**inputs, past_key_values=cache)
        cache.compress()
        assert cache.layers[0].start is not None, "the prompts keep unequal numbers of tokens"
        move_to_meta(cache)
        token, mask = (torch.ones(2, 1, dtype=torch.int64, device="meta") for _ in range(2))
        mask = mask.expand(-1, cache.get_seq_length() + 1)
        attachment_module.forwards.begin_forward(
            cache, token, mask, inputs_embeds=None, token_types=None, has_images=False
        )
        for index, layer in cache.managed_layers.items():
            states = torch.empty(2, layer.keys.shape[1], 1, layer.keys.shape[-1], device="meta")
            keys, values = cache.update(states, states, index)
            queries = states.repeat_interleave(3, dim=1)
            for own in (None, mask[:, None, None].bool(), mask[:, None, None].float()):
                module = torch.nn.Module()
                module.num_key_value_groups = 3
                output, _ = attachment_module.meda_attention_forward(
                    module, queries, keys, values, own, base="sdpa", scaling=1.0
                )
                assert output.shape == (2, 1, queries.shape[1], queries.shape[-1])
        attachment_module.forwards.end_forward(cache)
        cache.reorder_cache(torch.zeros(2, dtype=torch.int64, device="meta"))
    assert cache.layers[0].start.is_meta


def move_to_meta(cache: MedaCache) -> None:
    cache._order = cache._order.to("meta")  # type: ignore[union-attr]
    for layer in cache.managed_layers.values():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                setattr(layer, name, value.to("meta"))
        layer.device = torch.device("meta")
        layer._key_buffer = layer._value_buffer = None
    prompt = cache.reader.prompt
    assert prompt is not None
    cache.reader.prompt = type(prompt)(prompt.visual_mask.to("meta"), prompt.token_mask.to("meta"))


@torch.no_grad()
def test_mask_of_later_padding_is_kept_in_generate_and_in_loops() -> None:
    """One look finds padding in a second turn; a loop of the caller's own is not looked at, and gets its mask."""
    family = build_family("llama")
    inputs = family.prompts(0, 0)
    turn, turn_mask = torch.tensor([[7, 8, 9], [0, 11, 12]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    ids = torch.cat([inputs["input_ids"], turn], dim=1)
    mask = torch.cat([inputs["attention_mask"], turn_mask], dim=1)
    with attach(family.model):
        read = MedaCache(family.model.config, keep_ratio=0.4)
        family.model(**inputs, past_key_values=read)
        read.compress()
        tokens = family.model.generate(
            ids, attention_mask=mask, past_key_values=read.clone(), max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
        logits = family.model(
            input_ids=turn,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -3:],
            past_key_values=read,
        ).logits
        for step in range(4):
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
            assert torch.equal(token[:, 0], tokens[:, ids.shape[1] + step])
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            positions = (mask.cumsum(dim=1) - 1)[:, -1:]
            logits = family.model(
                input_ids=token, attention_mask=mask, position_ids=positions, past_key_values=read
            ).logits
            masks = [layer.build_mask(mask[:, None, None].bool(), 1) for layer in read.managed_layers.values()]
            assert all(own is not None and not own[1].all() for own in masks)


@torch.no_grad()
def test_masks_of_a_prompt_are_looked_at_once_for_all_layers(named_family: Any) -> None:
    """PaliGemma's mask is its own; the looks of a forward do not grow with the layers that share it."""
    family = named_family("paligemma")
    inputs, counts, observe = family.prompts(1, 2), [], MedaLayer.observe
    for num_observing in (1, 4):
        cache = MedaCache(family.model.config, preset="streaming_llm", keep_ratio=0.4)
        with attach(family.model), Looks() as looks, pytest.MonkeyPatch.context() as patch:

            def observe_some(layer: MedaLayer, *args: Any, **kwargs: Any) -> None:
                if layer.layer_idx < num_observing:  # noqa: B023
                    observe(layer, *args, **kwargs)
                layer.reading = None

            patch.setattr(MedaLayer, "observe", observe_some)
            family.model(**inputs, past_key_values=cache)
        counts.append(looks.count)
    assert counts[0] == counts[1]


@torch.no_grad()
def test_attention_hands_its_lse_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch takes its flash attention, the pass of the kernels that computes the sums is left out."""
    require_triton()
    from meda_cache.ops.statistics import _triton

    family = build_family("llama")
    inputs, caches, outputs = {"input_ids": torch.arange(3, 43)[None]}, [], []
    family.model.set_attn_implementation("sdpa")
    for backend in ("torch", "triton"):
        cache = MedaCache(family.model.config, preset="h2o", keep_ratio=0.3, backend=backend)
        if backend == "triton":
            monkeypatch.setattr(_triton, "row_lse_fwd_kernel", None)
        with attach(family.model):
            outputs.append(family.model(**inputs, past_key_values=cache).logits)
        caches.append(cache)
    assert torch.equal(*outputs), "the same attention as without"
    for ours, theirs in zip(*(cache.managed_layers.values() for cache in caches), strict=True):
        torch.testing.assert_close(ours.observers[0].key_mass, theirs.observers[0].key_mass, atol=1e-5, rtol=1e-4)


def test_lse_is_the_logarithm_of_the_sums_of_the_scaled_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 40, 16, generator=generator)
    key, value = (torch.randn(2, 2, 40, 16, generator=generator) for _ in range(2))
    found = attend_with_lse(query, key, value, scaling=0.5)
    assert found is not None
    output, lse = found
    scores = 0.5 * query @ key.repeat_interleave(3, dim=1).transpose(2, 3)
    hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)
    torch.testing.assert_close(lse, scores.masked_fill(hidden, -torch.inf).logsumexp(dim=-1))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.5, enable_gqa=True
    )
    assert torch.equal(output, expected.transpose(1, 2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attend_with_lse(query, key, value, scaling=0.5) is None, "that op gives none"


@pytest.mark.gpu
def test_lse_of_the_attention_op_on_a_gpu() -> None:
    query, key, value = (torch.randn(2, heads, 300, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        found = attend_with_lse(query, key, value, scaling=0.125)
    assert found is not None
    positions = torch.arange(300, device="cuda")
    for row in range(2):
        masks = {"query_positions": positions, "key_positions": positions}
        ours = attention_statistics(query[row], key[row], lse=found[1][row], **masks).key_mass
        torch.testing.assert_close(ours, attention_statistics(query[row], key[row], **masks).key_mass)
