"""Candidate search: work and time by size of the pool, blocks of 100 images; and FAISS against exact in one block.

Synthetic embeddings of 64 numbers in clusters. `work` counts similarities; with blocks of a fixed size it grows with
the pool, not with its square. `recall` is recall@10 against the exact search on a sample of queries.
"""

import time
from typing import Any

import numpy as np

from hf_compbench.mining import find_candidates

SIZE, BLOCK, NEIGHBOURS = 64, 100, 4


def make_embeddings(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, SIZE)).astype(np.float32)
    vectors = centres[rng.integers(200, size=n)] + 0.7 * rng.normal(size=(n, SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def search(n: int, block: int, index: Any) -> dict[str, Any]:
    table = {"block": np.arange(n) // block, "embedding": make_embeddings(n)}
    start = time.process_time()
    pairs, report = find_candidates(table, neighbours=NEIGHBOURS, index=index)
    seconds = time.process_time() - start
    assert len(pairs["first"]) >= n * NEIGHBOURS // 2
    return {
        "images": n,
        "block": block,
        "index": index,
        "seconds": seconds,
        "work": report["pairs_scored"],
        "work_of_all_pairs": n * n,
        "recall": report["recall"],
        "images_per_s": n / seconds,
    }


def run(*, quick: bool) -> list[dict[str, Any]]:
    sizes = [10_000] if quick else [10_000, 100_000, 1_000_000]
    rows = [search(n, BLOCK, "exact") for n in sizes]
    for row in rows:
        assert row["work"] == row["images"] * BLOCK
    whole = 2_000 if quick else 20_000
    for index in ("exact", "faiss"):
        rows.append(search(whole, whole, index))
        assert rows[-1]["recall"] >= 0.98
    return rows


PLOT = {"x": "images", "y": "seconds", "line": "index"}
