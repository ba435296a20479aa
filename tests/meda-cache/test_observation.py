"""What a cache has seen of a prompt equals what the model's own attention matrices say."""

from typing import Any

import pytest
import torch
from torch import Tensor

from meda_cache import MedaCache, attach
from support.tiny_decoders import IMAGE_TOKEN, TEXT_ONLY, Family


@pytest.fixture
def prompts(family: Family) -> dict[str, Tensor]:
    return family.prompts(1, 3, 2)


@torch.no_grad()
def attention_matrices(family: Family, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Attention of each layer, `(batch_size, num_heads, seq_len, seq_len)`, by eager attention without our package."""
    family.model.set_attn_implementation("eager")
    attentions: tuple[Tensor, ...] = family.model(**inputs, output_attentions=True, use_cache=False).attentions
    family.model.set_attn_implementation("sdpa")
    return attentions


@torch.no_grad()
def read(family: Family, inputs: dict[str, Tensor], **options: Any) -> MedaCache:
    cache = MedaCache(family.model.config, keep_ratio=0.4, **options)
    with attach(family.model):
        family.model(**inputs, past_key_values=cache)
    return cache


def entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(dim=-1)


def test_key_mass_and_window_are_columns_of_the_attention(family: Family, prompts: dict[str, Tensor]) -> None:
    matrices = attention_matrices(family, prompts)
    cache = read(family, prompts, preset="h2o")
    for index, layer in cache.managed_layers.items():
        for row, tokens in enumerate(prompts["attention_mask"].bool()):
            attention = matrices[index][row][:, tokens][:, :, tokens]  # (H, n, n)
            by_key_head = attention.sum(dim=1).unflatten(0, (layer.keys.shape[1], -1)).sum(dim=1)
            observer = layer.observers[row]
            torch.testing.assert_close(observer.key_mass, by_key_head, atol=1e-4, rtol=1e-4)
            seen = (attention[0] > 0).sum(dim=0)
            assert observer.num_queries.tolist() == seen.tolist()


def test_full_entropy_is_that_of_the_attention(family: Family, prompts: dict[str, Tensor]) -> None:
    matrices = attention_matrices(family, prompts)
    cache = read(family, prompts, preset="meda", entropy="full")
    cache.compress()
    for layer in cache.stats().layers:
        for row, tokens in enumerate(prompts["attention_mask"].bool()):
            attention = matrices[layer.layer_idx][row][:, tokens][:, :, tokens]
            expected = entropy(attention.mean(dim=0)).mean()
            assert layer.entropy[row] == pytest.approx(float(expected), abs=1e-4)


def test_causal_cross_modal_entropy_is_that_of_the_other_modality_alone(
    family: Family, prompts: dict[str, Tensor]
) -> None:
    if family.name in TEXT_ONLY:
        pytest.skip("has no other modality")
    matrices = attention_matrices(family, prompts)
    cache = read(family, prompts, preset="meda", causal=True)
    cache.compress()
    for layer in cache.stats().layers:
        for row, tokens in enumerate(prompts["attention_mask"].bool()):
            attention = matrices[layer.layer_idx][row][:, tokens][:, :, tokens].tril()
            visual = (prompts["input_ids"][row] == IMAGE_TOKEN)[tokens]
            expected = torch.zeros(())
            for is_row in (visual, ~visual):
                other = attention[:, is_row][:, :, ~is_row]
                other = other[:, other.sum(dim=(0, 2)) > 0]  # rows that see a token of the other modality
                expected = expected + entropy((other / other.sum(dim=-1, keepdim=True)).mean(dim=0)).mean()
            assert layer.entropy[row] == pytest.approx(float(expected), abs=1e-3)
