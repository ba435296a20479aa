"""Planted needles: keys that attention says are wanted are kept, and by no other reason."""

import torch

from meda_cache import allocate_budgets, cross_modal_entropy, key_mass, select_tokens
from meda_cache.functional.scores import rank_within_images

NUM_TOKENS, DIM = 256, 16
VISUAL_MASK = torch.arange(NUM_TOKENS) % 64 >= 4  # four images of 60 tokens, four text tokens before each
NEEDLES = torch.tensor([70, 110, 150])  # visual tokens of the second and the third image


def plant(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys `(1, 256, 16)` of noise; all queries ask for the needles, as strongly as said."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 1, NUM_TOKENS, DIM, generator=generator)
    wanted = torch.zeros(DIM)
    wanted[0] = 1
    keys[:, NEEDLES] += strength * wanted
    return queries + 4 * wanted, keys


def select(scores: torch.Tensor, budget: int, **options: object) -> set[int]:
    kept = select_tokens(
        scores,
        VISUAL_MASK,
        num_recent=budget // 2,
        num_important=budget - budget // 2,
        **{"text_policy": "none", **options},
    )
    return set(kept[0].tolist())


def test_attended_needles_are_kept_at_a_tenth() -> None:
    needles = set(NEEDLES.tolist())
    mass = key_mass(*plant(6.0))
    assert needles <= select(mass, 26)
    assert needles <= select(rank_within_images(mass, image_index()), 26)


def test_controls_lose_them() -> None:
    """Without the needles in the keys, without the mass, and by the last tokens alone."""
    needles = set(NEEDLES.tolist())
    assert not needles & select(key_mass(*plant(-6.0)), 26)
    noise = torch.rand(1, NUM_TOKENS, generator=torch.Generator().manual_seed(1))
    assert not needles <= select(noise, 26)
    last = select_tokens(key_mass(*plant(6.0)), VISUAL_MASK, num_recent=26, num_important=0, text_policy="none")
    assert not needles & set(last[0].tolist())


def test_text_prior_keeps_text_before_needles() -> None:
    mass = key_mass(*plant(6.0))
    text = set((~VISUAL_MASK).nonzero().flatten().tolist())
    assert text <= select(mass, 2 * len(text) + 6, text_policy="bias")
    assert not text <= select(mass, 2 * len(text) + 6)


def test_layer_that_looks_everywhere_gets_more_than_one_that_looks_at_needles() -> None:
    entropies = torch.stack([cross_modal_entropy(*plant(strength), VISUAL_MASK) for strength in (6.0, 0.0)])
    assert entropies[0] < entropies[1] - 0.3
    focused, wide = allocate_budgets(entropies.double().softmax(dim=0), 104, maximum=NUM_TOKENS)
    assert focused + wide == 104
    assert focused < wide
    assert set(NEEDLES.tolist()) <= select(key_mass(*plant(6.0)), focused)


def image_index() -> torch.Tensor:
    return torch.where(VISUAL_MASK, torch.arange(NUM_TOKENS) // 64, -1)[None]
