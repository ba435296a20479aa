"""The mining engine: from a pool of images with metadata to balanced pairs. Every stage is a function table -> table.

A table is a mapping from column to array or list, what `datasets` and Ray hand to a batched map, so that the same
functions can run per block under another engine.
"""

from hf_compbench.mining.embedding import PixelEmbedder, TransformersEmbedder, embed_images
from hf_compbench.mining.pairs import mine_pairs
from hf_compbench.mining.rules import Comparison, PairRule
from hf_compbench.mining.search import find_candidates

__all__ = [
    "Comparison",
    "PairRule",
    "PixelEmbedder",
    "TransformersEmbedder",
    "embed_images",
    "find_candidates",
    "mine_pairs",
]
