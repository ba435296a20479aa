"""From a pool of images to canonical pairs: embed, block, search, judge, cap, balance, group, audit."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets

from hf_compbench.audit import audit_pairs
from hf_compbench.balance import balance_sides
from hf_compbench.features import build_dataset, build_row
from hf_compbench.groups import connect, hash_unit
from hf_compbench.mining.embedding import PixelEmbedder, embed_images
from hf_compbench.mining.rules import PairRule
from hf_compbench.mining.search import RECALL, Table, find_candidates

logger = logging.getLogger(__name__)


def judge_candidates(
    candidates: Table, rows: Sequence[Any], keys: Sequence[str], rule: PairRule
) -> list[dict[str, Any]]:
    """Returns the canonical rows of those candidates that the rule makes a comparison of.

    Args:
        candidates: `first`, `second`, `similarity`, as from [`find_candidates`].
        rows: metadata of each image.
        keys: key of each image.
        rule: makes the comparison.
    """
    made = []
    columns = (candidates[name].tolist() for name in ("first", "second", "similarity"))
    for first, second, similarity in zip(*columns, strict=True):
        comparison = rule.compare(rows[first], rows[second])
        if comparison is None:
            continue
        meta = {"similarity": round(similarity, 4), "margin": round(comparison.margin, 4)}
        made.append(
            build_row(
                source=rule.source,
                relativity=rule.relativity,
                keys=(keys[first], keys[second]),
                question=comparison.question,
                options=comparison.options,
                answer_text=comparison.answer_text,
                subtype=comparison.subtype,
                meta=meta,
            )
        )
    return made


def cap_reuse(
    pairs: Sequence[dict[str, Any]],
    *,
    image_cap: int = 3,
    question_cap: int | None = 50,
    num_pairs: int | None = None,
    shares: dict[str, float] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Returns pairs in an order drawn from the seed, as far as the caps go, and with the wanted shares of answers.

    Args:
        image_cap: largest number of pairs that an image is in.
        question_cap: largest number of pairs with the same question, None for no cap.
        num_pairs: how many at most.
        shares: largest share of an answer among the pairs that are kept, as in [`PairRule`].
        seed: seed of the order.
    """
    order = sorted(pairs, key=lambda pair: hash_unit(seed, "order", pair["id"]))
    shares = dict(shares or {})
    total = min(num_pairs or len(order), len(order))
    limits = {answer: round(share * total) for answer, share in shares.items()}
    limits[""] = total - sum(limits.values())
    images: Counter[str] = Counter()
    questions: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    kept = []
    for pair in order:
        kind = pair["answer_text"] if pair["answer_text"] in shares else ""
        keys = (pair["image_1_key"], pair["image_2_key"])
        is_full = question_cap is not None and questions[pair["question"]] >= question_cap
        if is_full or answers[kind] >= limits[kind] or max(images[key] for key in keys) >= image_cap:
            continue
        kept.append(pair)
        images.update(keys)
        questions[pair["question"]] += 1
        answers[kind] += 1
    return _trim_to_shares(kept, shares)


def _trim_to_shares(pairs: Sequence[dict[str, Any]], shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """The pairs without the last ones of an answer that is too frequent among them: caps hit answers unevenly."""
    others = sum(pair["answer_text"] not in shares for pair in pairs)
    free = 1 - sum(shares.values())
    limits = {answer: math.ceil(share / free * others - 1e-9) for answer, share in shares.items()}
    seen: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        answer = pair["answer_text"]
        seen[answer] += 1
        if answer not in limits or seen[answer] <= limits[answer]:
            kept.append(pair)
    return kept


def mine_pairs(
    dataset: datasets.Dataset,
    rule: PairRule,
    *,
    embedder: Any = None,
    index: Literal["auto", "exact", "faiss"] = "auto",
    balance: bool = True,
    seed: int = 0,
    num_pairs: int | None = None,
    image_cap: int = 3,
    question_cap: int | None = 50,
    cache_dir: str | Path | None = None,
    check: bool = True,
) -> datasets.Dataset:
    """Returns comparisons mined from a pool of images, in the canonical columns.

    Stages: block by metadata; embed each image once; search candidates in the band of similarity; judge them by the
    rule; cap reuse; balance sides for each question; name the groups of pairs that share an image (or a `group_id` of
    the pool); audit. What the search cost and its recall stand in `info.description` and are logged.

    Args:
        dataset: the pool: `image`, and the metadata that the rule reads. A column `group_id` says which images belong
            together (frames of a video, edits of a photo).
        rule: a [`PairRule`].
        embedder: images -> embeddings, default [`PixelEmbedder`].
        index: as in [`find_candidates`].
        balance: whether sides are balanced; without it they stay as the pool's order gives them.
        seed: seed of every choice.
        num_pairs: how many pairs at most.
        image_cap, question_cap: largest number of pairs with the same image, with the same question.
        cache_dir: where embeddings are kept, see [`embed_images`].
        check: whether a set that the audit finds leaky is refused.

    Raises:
        ValueError: if the pool has no `image`, no pair is found, or the audit finds a leak.

    Example:

    ```python
    >>> import datasets
    >>> from PIL import Image
    >>> from hf_compbench.mining import Comparison, PairRule, mine_pairs
    >>> def compare(a, b):
    ...     side = "Left" if a["light"] > b["light"] else "Right"
    ...     return Comparison(question="Which is lighter?", options=("Left", "Right"), answer_text=side)
    >>> rule = PairRule(source="mini_photos", relativity="attribute", block=lambda row: "all", compare=compare)
    >>> images = [Image.new("L", (32, 32), 20 * i) for i in range(8)]
    >>> features = datasets.Features({"image": datasets.Image(), "light": datasets.Value("int32")})
    >>> pool = datasets.Dataset.from_dict({"image": images, "light": range(8)}, features=features)
    >>> pairs = mine_pairs(pool, rule, num_pairs=4, image_cap=1)
    >>> pairs.num_rows, sorted(pairs["answer"])
    (4, [0, 0, 1, 1])

    ```
    """
    if "image" not in dataset.column_names:
        raise ValueError(f"Expected a pool with the column 'image', got {', '.join(dataset.column_names)}.")
    pool, rows, blocks = _select_blocks(dataset, rule)
    embeddings = embed_images(pool, embedder or PixelEmbedder(), cache_dir=cache_dir)
    candidates, search = find_candidates(
        {"block": blocks, "embedding": embeddings},
        neighbours=rule.neighbours,
        low=rule.low,
        high=rule.high,
        index=index,
    )
    keys = hash_images(pool)
    pairs = judge_candidates(candidates, rows, keys, rule)
    pairs = cap_reuse(
        pairs,
        image_cap=image_cap,
        question_cap=question_cap,
        num_pairs=num_pairs,
        shares=dict(rule.shares),
        seed=seed,
    )
    if not pairs:
        raise ValueError("Expected the rule to make a pair of some candidates, got none; widen its band or its rule.")
    pairs = balance_sides(pairs, seed) if balance else pairs
    result = attach_images(_name_groups(pairs, rows, keys), pool, keys)
    if check:
        audit_pairs(result).require_clean()
    result.info.description = _describe(search, len(candidates["first"]), len(pairs))
    level = logging.WARNING if search["recall"] < RECALL else logging.INFO
    logger.log(level, "%s", result.info.description)
    return result


def _select_blocks(dataset: datasets.Dataset, rule: PairRule) -> tuple[datasets.Dataset, list[Any], list[str]]:
    """The images of the pool that the rule gives a block, their metadata, and their blocks."""
    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    rows = list(dataset.remove_columns(images))
    blocks = [rule.block(row) for row in rows]
    used = [i for i, block in enumerate(blocks) if block is not None]
    if len(used) < 2:
        raise ValueError(f"Expected at least two images with a block, got {len(used)} of {len(rows)}.")
    return dataset.select(used), [rows[i] for i in used], [str(blocks[i]) for i in used]


def _describe(search: Mapping[str, Any], num_candidates: int, num_pairs: int) -> str:
    return (
        f"Mined by hf-compbench: {num_pairs} pairs of {num_candidates} candidates from {search['num_blocks']} blocks, "
        f"{search['pairs_scored']} similarities, recall@10 {search['recall']:.3f}."
    )


def hash_images(dataset: datasets.Dataset) -> list[str]:
    """Returns the key of each row's `image`: sha256 of its size and pixels."""
    keys = []
    for row in dataset.select_columns(["image"]):
        image = row["image"].convert("RGB")
        keys.append(hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:32])
    return keys


def _name_groups(pairs: Sequence[dict[str, Any]], rows: Sequence[Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    group_of = {key: str(row.get("group_id") or key) for row, key in zip(rows, keys, strict=True)}
    roots = connect([(group_of[pair["image_1_key"]], group_of[pair["image_2_key"]]) for pair in pairs])
    return [
        {**pair, "group_id": hashlib.sha1(root.encode()).hexdigest()[:16]}
        for pair, root in zip(pairs, roots, strict=True)
    ]


def attach_images(pairs: Sequence[dict[str, Any]], pool: datasets.Dataset, keys: Sequence[str]) -> datasets.Dataset:
    """Returns the pairs as a dataset with their images, encoded as in the pool."""
    place_of = {key: place for place, key in reversed(list(enumerate(keys)))}
    encoded = pool.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    made = []
    for pair in pairs:
        images = {f"image_{side}": encoded[place_of[pair[f"image_{side}_key"]]]["image"] for side in (1, 2)}
        made.append({**pair, **images})
    return build_dataset(made)
