"""The mining engine: from a pool of images with metadata to balanced pairs.

`mine_pairs` runs all stages. Each is a plain function without state, from a table to a table, so that another engine
can run them block by block: `embed_images` (images -> embeddings), `find_candidates` (blocks and embeddings ->
candidate pairs), `judge_candidates` (candidates -> canonical rows), `cap_reuse` and `balance_sides` (rows -> rows);
and for what comes after, `split_groups` (rows -> rows by split, no image in two of them). Tables of arrays are
mappings from column to array, tables of rows are lists of dicts.
"""

from hf_compbench.balance import balance_sides
from hf_compbench.groups import split_groups
from hf_compbench.mining.embedding import PixelEmbedder, TransformersEmbedder, embed_images
from hf_compbench.mining.pairs import cap_reuse, judge_candidates, mine_pairs
from hf_compbench.mining.rules import Comparison, PairRule
from hf_compbench.mining.search import find_candidates

__all__ = [
    "Comparison",
    "PairRule",
    "PixelEmbedder",
    "TransformersEmbedder",
    "balance_sides",
    "cap_reuse",
    "embed_images",
    "find_candidates",
    "judge_candidates",
    "mine_pairs",
    "split_groups",
]
