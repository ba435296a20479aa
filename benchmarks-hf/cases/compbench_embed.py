"""Embeds each image of a pool once, against both images of every candidate pair, as the released scripts do.

vit-nano, 48 images of 64 pixels in one block; the candidates are the block's nearest pairs.
"""

from functools import cache
from typing import Any

import numpy as np

import hf_diorama
from harness import Timing
from hf_compbench.mining import TransformersEmbedder, embed_images, find_candidates

IMAGES = 48


@cache
def load() -> tuple[Any, Any]:
    return hf_diorama.load("creatures", "test", n=IMAGES), TransformersEmbedder(hf_diorama.model_path("vit-nano"))


def setup(neighbours: int) -> tuple[Any, Any, list[tuple[int, int]]]:
    pool, embedder = load()
    table = {"block": ["all"] * IMAGES, "embedding": embed_images(pool, embedder)}
    pairs, _ = find_candidates(table, neighbours=neighbours, index="exact")
    return pool, embedder, list(zip(pairs["first"].tolist(), pairs["second"].tolist(), strict=True))


def once(inputs: tuple[Any, Any, list[tuple[int, int]]]) -> list[float]:
    pool, embedder, pairs = inputs
    embeddings = embed_images(pool, embedder)
    return [float(embeddings[a] @ embeddings[b]) for a, b in pairs]


def per_pair(inputs: tuple[Any, Any, list[tuple[int, int]]]) -> list[float]:
    pool, embedder, pairs = inputs
    return [float(np.prod(embedder([pool[a]["image"], pool[b]["image"]]), axis=0).sum()) for a, b in pairs]


def check(inputs: tuple[Any, Any, list[tuple[int, int]]]) -> None:
    np.testing.assert_allclose(once(inputs), per_pair(inputs), atol=1e-4)


CASE = Timing(
    sizes=[{"neighbours": 1}, {"neighbours": 4}],
    setup=setup,
    check=check,
    ours=once,
    peer=per_pair,
    items=IMAGES,
    unit="images",
)
