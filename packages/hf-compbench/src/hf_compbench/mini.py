"""mini-CompBench: all eight kinds of comparison, mined offline from rendered scenes and from edited photos.

Its scores are not comparable with those on MLLM-CompBench.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from hf_compbench.mini_rules import PHOTO_RULES, SCENE_RULES, MiniRule
from hf_compbench.mining.pairs import mine_pairs
from hf_compbench.photos import edit_photos, load_photos
from hf_compbench.sources import RELATIVITIES

MINI_SPLITS = ("train", "validation", "test", "heldout")
"""Splits of hf-diorama; no two share a scene. `heldout` is for final numbers, on seeds from 1000 (those below were
looked at while hf-diorama's models were trained)."""

# Rows of a pool for each wanted pair, beside the two that are used: margins and bands refuse some candidates.
_POOL_PER_PAIR = {"existence": 5, "temporal": 8, "quality": 8}
_RULES = 16  # rules of a kind at most
_GROUP = {"existence": 5, "temporal": 6, "quality": 8}


def build_mini(
    split: str = "test",
    *,
    num_pairs: int = 60,
    seed: int = 0,
    image_size: int = 128,
    relativities: tuple[str, ...] = RELATIVITIES,
    photos: str | Path | None = None,
) -> datasets.Dataset:
    """Returns mini-CompBench in the canonical columns, audited.

    Scenes are rendered by hf-diorama (extra `mini`) and kept in the cache of `datasets`; pairs come out of the mining
    engine, no image is in two of them.

    Args:
        split: one of hf-diorama's splits.
        num_pairs: pairs of each kind of comparison, and of each kind that photos have.
        seed: seed of scenes, edits and mining; from 1000 for final numbers on `heldout`.
        image_size: height and width in pixels.
        relativities: kinds of comparison.
        photos: folder of photos (Parquet files or images) for the real part: quality, existence, attribute, quantity.

    Raises:
        ImportError: without hf-diorama.
        ValueError: for an unknown split or kind, or too few photos.
    """
    if split not in MINI_SPLITS:
        raise ValueError(f"Expected `split` to be one of {', '.join(MINI_SPLITS)}, got {split!r}.")
    if unknown := set(relativities) - set(RELATIVITIES):
        raise ValueError(f"Expected kinds of comparison from {', '.join(RELATIVITIES)}, got {sorted(unknown)}.")
    if num_pairs < 4:
        raise ValueError(f"Expected `num_pairs` of at least 4, got {num_pairs}.")
    parts = []
    source = load_photos(photos) if photos is not None else None
    for relativity in relativities:
        for number, (rule, count) in enumerate(_share_out(SCENE_RULES[relativity], num_pairs)):
            own_seed = _RULES * seed + number  # rules on the same topic see scenes of their own
            parts.append(_mine(rule, count, seed, partial(_render_pool, rule, split, own_seed, image_size)))
        if source is not None:
            for rule, count in _share_out(PHOTO_RULES.get(relativity, []), num_pairs):
                parts.append(_mine(rule, count, seed, partial(_edit_pool, rule, source, split, seed, image_size)))
    return datasets.concatenate_datasets(parts)


def _share_out(rules: list[MiniRule], num_pairs: int) -> list[tuple[MiniRule, int]]:
    total = sum(rule.weight for rule in rules)
    counts = [round(num_pairs * rule.weight / total) for rule in rules]
    if counts:
        counts[0] += num_pairs - sum(counts)
    return list(zip(rules, counts, strict=True))


def _mine(rule: MiniRule, count: int, seed: int, make_pool: Callable[[int], datasets.Dataset]) -> datasets.Dataset:
    """Mines `count` pairs; where a pool gives too few, from one that is twice and four times as large."""
    for factor in (1, 2, 4):
        pool = make_pool(factor * count)
        pairs = mine_pairs(pool, rule.rule, num_pairs=count, image_cap=1, question_cap=None, seed=seed)
        if pairs.num_rows == count:
            break
    else:
        raise ValueError(f"Expected {count} pairs of {rule.rule.relativity} from {rule.topic}, got {pairs.num_rows}.")
    return pairs


def _render_pool(rule: MiniRule, split: str, seed: int, image_size: int, count: int) -> datasets.Dataset:
    try:
        import hf_diorama
    except ImportError:
        raise ImportError(
            'mini-CompBench is mined from scenes of hf-diorama: pip install "hf-compbench[mini]".'
        ) from None
    group = _GROUP.get(rule.topic, 1)
    wanted = max(_POOL_PER_PAIR.get(rule.topic, 6) * count, 60)
    n = -(-wanted // group) * group
    options: dict[str, Any] = dict(rule.pool_options)
    return hf_diorama.load("scenes", split=split, n=n, seed=seed, image_size=image_size, topic=rule.topic, **options)


def _edit_pool(
    rule: MiniRule, photos: datasets.Dataset, split: str, seed: int, image_size: int, count: int
) -> datasets.Dataset:
    """Edited photos; each split has a quarter of the photos of its own."""
    offset, step = MINI_SPLITS.index(split), len(MINI_SPLITS)
    needed = 4 * count if rule.topic == "quantity" else count
    available = range(offset, len(photos), step)
    if len(available) < needed:
        raise ValueError(
            f"Expected at least {needed * step} photos for the pairs of {rule.rule.relativity}, got {len(photos)}; "
            "pass more photos or a smaller `num_pairs`."
        )
    chosen = photos.select(list(available)[:needed])
    return edit_photos(chosen, rule.topic, image_size=image_size, seed=seed)
