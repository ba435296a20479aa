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
        `pairs_scored`, `num_blocks`, `recall` (the lowest of the blocks searched by FAISS, else 1).

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_compbench.mining import find_candidates
    >>> table = {"block": ["a", "a", "b"], "embedding": np.eye(3, dtype=np.float32)}
    >>> pairs, report = find_candidates(table)
    >>> pairs["first"].tolist(), pairs["second"].tolist(), report["pairs_scored"]
    ([0], [1], 5)

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
            near, block_recall, work = _search_faiss(vectors, neighbours, low, high)
            recall = min(recall, block_recall)
        else:
            near, work = _search_exact(vectors, neighbours, low, high), len(members) ** 2
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


def _search_exact(vectors: Floats, neighbours: int, low: float, high: float) -> npt.NDArray[np.float64]:
    """Rows (query, neighbour, similarity) of the nearest neighbours within the band."""
    rows = []
    k = min(neighbours, len(vectors) - 1)
    if k < 1:
        return np.empty((0, 3))
    for start in range(0, len(vectors), _CHUNK):
        similarity = vectors[start : start + _CHUNK] @ vectors.T
        query = np.arange(len(similarity))
        similarity[query, start + query] = -np.inf
        similarity[(similarity < low) | (similarity > high)] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similarity, nearest, axis=1)
        table = np.column_stack([np.repeat(start + query, k), nearest.ravel(), values.ravel()])
        rows.append(table[np.isfinite(table[:, 2])])
    return np.concatenate(rows)


def _search_faiss(vectors: Floats, neighbours: int, low: float, high: float) -> tuple[Any, float, int]:
    """The same by an inverted file whose probes are doubled until a sample reaches the wanted recall."""
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
    sample = np.random.default_rng(0).choice(len(vectors), min(200, len(vectors)), replace=False)
    wanted = np.argpartition(-(vectors[sample] @ vectors.T), min(10, len(vectors) - 1), axis=1)[:, :10]
    index.nprobe, recall = 1, 0.0
    while True:
        _, got = index.search(vectors[sample], 10)
        recall = float(
            np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(wanted.tolist(), got.tolist(), strict=True)])
        )
        if recall >= RECALL or index.nprobe >= num_lists:
            break
        index.nprobe = min(2 * index.nprobe, num_lists)
    similarity, nearest = index.search(vectors, min(neighbours + 1, len(vectors)))
    query = np.repeat(np.arange(len(vectors)), nearest.shape[1])
    table = np.column_stack([query, nearest.ravel(), similarity.ravel()])
    inside = (nearest.ravel() >= 0) & (table[:, 0] != table[:, 1]) & (table[:, 2] >= low) & (table[:, 2] <= high)
    work = len(vectors) * (num_lists + int(len(vectors) * index.nprobe / num_lists))
    return table[inside], recall, work
