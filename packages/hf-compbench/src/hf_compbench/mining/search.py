"""Finds candidate pairs inside blocks: exactly, or with FAISS and a reported recall.

The work of the exact search is the sum over blocks of their squared sizes, never the square of the pool.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Table = dict[str, Any]
EXACT_LIMIT = 50_000
"""Largest block that `index="auto"` searches exactly."""
RECALL = 0.98
SAMPLE = 10_000
"""Queries at most, and a twentieth of the images at most, on which recall@10 is measured against the exact search."""
_CHUNK = 1024


def find_candidates(
    table: Table,
    *,
    neighbours: int = 32,
    low: float = -1.0,
    high: float = 1.0,
    index: Literal["auto", "exact", "faiss"] = "auto",
) -> tuple[Table, dict[str, Any]]:
    """Returns pairs of near images of the same block, and what the search cost.

    Args:
        table: `block` (`str` for each image) and `embedding` (float32 of shape `(num_images, size)`, unit length).
        neighbours: nearest images of the band that each image is paired with.
        low, high: band of cosine similarity, both ends included.
        index: `"exact"`, `"faiss"` (IVF, tuned to recall@10 of at least 0.98 on a sample), or `"auto"`: FAISS for
            blocks above 50,000 images.

    Returns:
        the table `first`, `second` (row numbers, first < second, sorted) and `similarity`; and a report:
        `pairs_scored` (similarities computed), `num_blocks`, `recall` (share of the ten nearest images of the band
        that a sample finds, the lowest of the blocks searched by FAISS, else 1).

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_compbench.mining import find_candidates
    >>> table = {"block": ["a", "a", "b"], "embedding": np.eye(3, dtype=np.float32)}
    >>> pairs, report = find_candidates(table)
    >>> pairs["first"].tolist(), pairs["second"].tolist(), report["pairs_scored"]
    ([0], [1], 4)

    ```
    """
    if index not in ("auto", "exact", "faiss"):
        raise ValueError(f"Expected `index` to be 'auto', 'exact' or 'faiss', got {index!r}.")
    embeddings = np.asarray(table["embedding"], dtype=np.float32)
    blocks = np.asarray(table["block"])
    if len(blocks) != len(embeddings):
        raise ValueError(f"Expected as many blocks as embeddings, got {len(blocks)} and {len(embeddings)}.")
    order = np.argsort(blocks, kind="stable")
    cuts = np.flatnonzero(blocks[order][1:] != blocks[order][:-1]) + 1
    found, scored, recall = [], 0, 1.0
    members_of = np.split(order, cuts) if len(order) else []
    for members in members_of:
        vectors = embeddings[members]
        if index == "faiss" or (index == "auto" and len(members) > EXACT_LIMIT):
            near, work, block_recall = _search_faiss(vectors, neighbours, low, high)
            recall = min(recall, block_recall)
        else:
            near, work = _search_exact(vectors, neighbours, low, high)
        scored += work
        found.append(np.column_stack([members[near[:, 0].astype(int)], members[near[:, 1].astype(int)], near[:, 2]]))
    pairs = np.concatenate(found) if found else np.empty((0, 3))
    result = _unique(pairs)
    return result, {"pairs_scored": int(scored), "num_blocks": len(members_of), "recall": recall}


def _unique(pairs: npt.NDArray[np.float64]) -> Table:
    """Each unordered pair once, sorted by row numbers."""
    first = pairs[:, :2].min(axis=1).astype(np.int64)
    second = pairs[:, :2].max(axis=1).astype(np.int64)
    span = int(second.max()) + 1 if len(second) else 1
    _, keep = np.unique(first * span + second, return_index=True)
    return {"first": first[keep], "second": second[keep], "similarity": pairs[keep, 2]}


def _search_exact(vectors: Floats, neighbours: int, low: float, high: float) -> tuple[npt.NDArray[np.float64], int]:
    """Rows (query, neighbour, similarity) of the nearest neighbours within the band, and the similarities computed."""
    rows, work = [], 0
    k = min(neighbours, len(vectors) - 1)
    if k < 1:
        return np.empty((0, 3)), 0
    for start in range(0, len(vectors), _CHUNK):
        similarity = vectors[start : start + _CHUNK] @ vectors.T
        work += similarity.size
        query = np.arange(len(similarity))
        similarity[query, start + query] = -np.inf
        similarity[(similarity < low) | (similarity > high)] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similarity, nearest, axis=1)
        table = np.column_stack([np.repeat(start + query, k), nearest.ravel(), values.ravel()])
        rows.append(table[np.isfinite(table[:, 2])])
    return np.concatenate(rows), work


def _search_faiss(vectors: Floats, neighbours: int, low: float, high: float) -> tuple[Any, int, float]:
    """The same by an inverted file, and its recall@10."""
    try:
        import faiss
    except ImportError:
        raise ImportError(
            'FAISS is not installed; pip install "hf-compbench[mining]", or use index="exact".'
        ) from None

    num_lists = max(1, min(int(4 * np.sqrt(len(vectors))), len(vectors) // 39))
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    recall, work = _tune(index, vectors, low, high)
    everything = np.arange(len(vectors))
    table, searched = _search_band(index, vectors, everything, min(neighbours, len(vectors) - 1), low, high)
    return table, work + searched * _work_of_a_query(index), recall


def _work_of_a_query(index: Any) -> int:
    return int(index.nlist + index.ntotal * index.nprobe / index.nlist)


def _tune(index: Any, vectors: Floats, low: float, high: float) -> tuple[float, int]:
    """Doubles the probes until a sample of queries finds its ten nearest images of the band; returns recall and work.

    The band counts: near copies above it are easy to find and would hide what is missed.
    """
    n = len(vectors)
    sample = np.sort(np.random.default_rng(0).choice(n, max(1, min(SAMPLE, n // 20)), replace=False))
    top = min(10, n - 1)
    wanted: set[tuple[int, int]] = set()
    for start in range(0, len(sample), _CHUNK):
        chosen = sample[start : start + _CHUNK]
        similarity = vectors[chosen] @ vectors.T
        similarity[np.arange(len(chosen)), chosen] = -np.inf  # an image always finds itself
        similarity[(similarity < low) | (similarity > high)] = -np.inf
        nearest = np.argpartition(-similarity, top - 1, axis=1)[:, :top]
        inside = np.isfinite(np.take_along_axis(similarity, nearest, axis=1))
        wanted |= set(zip(np.repeat(chosen, top)[inside.ravel()].tolist(), nearest[inside].tolist(), strict=True))
    index.nprobe, work = 1, len(sample) * n
    while True:
        table, searched = _search_band(index, vectors, sample, top, low, high)
        work += searched * _work_of_a_query(index)
        found = set(map(tuple, table[:, :2].astype(int).tolist()))
        recall = len(found & wanted) / len(wanted) if wanted else 1.0
        if recall >= RECALL or index.nprobe >= index.nlist:
            return recall, work
        index.nprobe = min(2 * index.nprobe, index.nlist)


def _search_band(
    index: Any, vectors: Floats, queries: npt.NDArray[np.int64], k: int, low: float, high: float
) -> tuple[npt.NDArray[np.float64], int]:
    """Rows (query, neighbour, similarity), and the number of searches.

    The index knows no band: a query whose nearest images lie above the band is asked for twice as many until it has
    `k` inside, or the last one is below it.
    """
    rows, searches = [], 0
    fetch = min(k + 1, len(vectors))
    while len(queries):
        similarity, nearest = index.search(vectors[queries], fetch)
        searches += len(queries)
        inside = (nearest >= 0) & (nearest != queries[:, None]) & (similarity >= low) & (similarity <= high)
        done = (inside.sum(axis=1) >= k) | (similarity[:, -1] < low) | (nearest[:, -1] < 0) | (fetch == len(vectors))
        kept = inside & (inside.cumsum(axis=1) <= k) & done[:, None]
        asked = np.repeat(queries, fetch).reshape(nearest.shape)
        rows.append(np.column_stack([asked[kept], nearest[kept], similarity[kept]]))
        queries, fetch = queries[~done], min(2 * fetch, len(vectors))
    return np.concatenate(rows), searches
