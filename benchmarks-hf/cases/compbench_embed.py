"""Embeds each image of a pool once, against both images of every candidate pair, as the released scripts do.

vit-nano, 48 images of 64 pixels in one block; the candidates are pairs of near images. Twelve pairs need 24 images at
most: there embedding the whole pool loses.
"""

from functools import cache
from typing import Any

import numpy as np

import hf_diorama
from harness import Timing
from hf_compbench.mining import TransformersEmbedder, embed_images, find_candidates

IMAGES = 48
Inputs = tuple[Any, Any, list[tuple[int, int]]]


@cache
def load() -> tuple[Any, Any]:
    return hf_diorama.load("creatures", "test", n=IMAGES), TransformersEmbedder(hf_diorama.model_path("vit-nano"))


def setup(pairs: int) -> Inputs:
    pool, embedder = load()
    table = {"block": ["all"] * IMAGES, "embedding": embed_images(pool, embedder)}
    found, _ = find_candidates(table, neighbours=8, index="exact")
    candidates = list(zip(found["first"].tolist(), found["second"].tolist(), strict=True))
    assert len(candidates) >= pairs
    return pool, embedder, candidates[:pairs]


def once(inputs: Inputs) -> list[float]:
    pool, embedder, pairs = inputs
    embeddings = embed_images(pool, embedder)
    return [float(embeddings[a] @ embeddings[b]) for a, b in pairs]


def per_pair(inputs: Inputs) -> list[float]:
    pool, embedder, pairs = inputs
    return [float(np.prod(embedder([pool[a]["image"], pool[b]["image"]]), axis=0).sum()) for a, b in pairs]


def check(inputs: Inputs) -> None:
    np.testing.assert_allclose(once(inputs), per_pair(inputs), atol=1e-4)


CASE = Timing(
    sizes=[{"pairs": 12}, {"pairs": 24}, {"pairs": 48}, {"pairs": 192}],
    setup=setup,
    check=check,
    ours=once,
    peer=per_pair,
    items=IMAGES,
    unit="images",
)
