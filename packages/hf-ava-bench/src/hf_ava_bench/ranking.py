"""How one head ranks towers: ranks with ties, which pairs the items tell apart, and whether ranks are chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from hf_ava_bench.abilities import ABILITIES
from hf_ava_bench.fingerprint import Fingerprint
from hf_ava_bench.functional import Array
from hf_ava_bench.statistics import (
    bootstrap_interval,
    friedman_test,
    holm,
    nemenyi_difference,
    rank_average,
    sign_flip_test,
)

Rank = Literal["statistical", "point"]
RANKS = ("statistical", "point")


@dataclass(frozen=True, kw_only=True)
class TowerRanking:
    """The ranks of towers under one head.

    `ranks` holds the rank of each tower in each ability, 1 for the best, and `mean_ranks` their mean over abilities.
    `pairs` holds for each ability all pairs of towers with the mean `difference` of the metric (positive where the
    first is better), the `p` of a paired sign-flip test and `p_holm`, corrected for the number of pairs. `friedman`
    tests whether mean ranks are chance; mean ranks differ where they are `nemenyi_difference` apart.

    Example:

    ```python
    >>> from hf_ava_bench import TowerRanking
    >>> ranking = TowerRanking(rank="point", ranks={"scene": {"a": 1.0, "b": 2.0}}, mean_ranks={"a": 1.0, "b": 2.0},
    ...                        pairs={"scene": []}, friedman={"statistic": 1.0, "p": 0.5})
    >>> print(ranking.table())
    | tower | scene | mean rank |
    |---|---|---|
    | a | 1 | 1.00 |
    | b | 2 | 2.00 |
    <BLANKLINE>
    1 ability, 2 towers, Friedman p 0.500. Ranks by point scores.

    ```
    """

    rank: str
    ranks: Mapping[str, Mapping[str, float]]
    mean_ranks: Mapping[str, float]
    pairs: Mapping[str, Sequence[Mapping[str, Any]]]
    friedman: Mapping[str, float]

    def table(self) -> str:
        """Returns the ranks as a Markdown table, the best tower first."""
        names = sorted(self.ranks)
        lines = [f"| tower | {' | '.join(names)} | mean rank |", "|---" * (len(names) + 2) + "|"]
        for tower, mean in sorted(self.mean_ranks.items(), key=lambda item: (item[1], item[0])):
            own = " | ".join(f"{self.ranks[name][tower]:g}" for name in names)
            lines.append(f"| {tower} | {own} | {mean:.2f} |")
        abilities = f"{len(names)} abilit{'y' if len(names) == 1 else 'ies'}"
        note = f"{abilities}, {len(self.mean_ranks)} towers, Friedman p {self.friedman['p']:.3f}"
        if "nemenyi_difference" in self.friedman:
            note += f", mean ranks differ from {self.friedman['nemenyi_difference']:.2f} on (Nemenyi, 0.05)"
        told = sum(pair["p_holm"] < 0.05 for pairs in self.pairs.values() for pair in pairs)
        total = sum(map(len, self.pairs.values()))
        if total:
            note += f"; {told} of {total} pairs differ (sign-flip test, Holm in each ability, 0.05)"
        by = (
            "Towers that the items do not tell apart share a rank"
            if self.rank == "statistical"
            else "Ranks by point scores"
        )
        return "\n".join([*lines, "", f"{note}. {by}."])


def rank_towers(fingerprints: Sequence[Fingerprint], *, rank: Rank = "statistical", seed: int = 0) -> TowerRanking:
    """Returns the ranks of towers in each ability and over all of them.

    Args:
        fingerprints (sequence of `Fingerprint`): one for each tower, of the same items.
        rank (`str`, defaults to `"statistical"`):
            `"statistical"` shares ranks where the items do not tell towers apart, see [`statistical_ranks`], `"point"`
            ranks the scores as they are.
        seed (`int`, defaults to 0): seed of the draws.

    Raises:
        ValueError: for fewer than two towers, a tower that comes twice, or abilities, items or kinds of items that
            differ.

    Example:

    ```python
    >>> from hf_ava_bench import AbilityResult, Fingerprint, rank_towers
    >>> def fingerprint(tower, share):
    ...     values = {str(i): float(i < share) for i in range(50)}
    ...     result = AbilityResult(metric="accuracy", value=share / 50, interval=(0, 1), n=50, coverage=1,
    ...                            n_unparsable=0, m0=0.1, m1=1.0, score=share / 50, score_interval=(0, 1),
    ...                            split_origin="source", synthetic=True, values=values)
    ...     return Fingerprint(tower=tower, llm="m", profile={}, seed=0, num_tokens=9, abilities={"scene": result})
    >>> ranking = rank_towers([fingerprint("a", 40), fingerprint("b", 40), fingerprint("c", 10)])
    >>> ranking.mean_ranks, [pair["p_holm"] < 0.01 for pair in ranking.pairs["scene"]]
    ({'a': 1.5, 'b': 1.5, 'c': 3.0}, [False, True, True])

    ```
    """
    if rank not in RANKS:
        raise ValueError(f"`rank` must be one of {', '.join(RANKS)}, got {rank!r}.")
    towers, abilities = check_side(fingerprints)
    points = np.array([[f.abilities[name].score for f in fingerprints] for name in abilities])
    if rank == "statistical":
        ranks = {name: statistical_ranks(fingerprints, name, seed=seed) for name in abilities}
    else:
        rows = (rank_average(row).tolist() for row in points)
        ranks = {name: dict(zip(towers, row, strict=True)) for name, row in zip(abilities, rows, strict=True)}
    return TowerRanking(
        rank=rank,
        ranks=ranks,
        mean_ranks={tower: float(np.mean([own[tower] for own in ranks.values()])) for tower in towers},
        pairs={name: _test_pairs(fingerprints, name, seed) for name in abilities},
        friedman=judge_ranks(points, seed),
    )


def check_side(fingerprints: Sequence[Fingerprint]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the towers and the abilities of fingerprints that may be ranked together, and raises if they may not."""
    towers = tuple(fingerprint.tower for fingerprint in fingerprints)
    if len(towers) < 2 or len(set(towers)) != len(towers):
        raise ValueError(f"Expected two or more towers, each once, got {', '.join(towers) or 'none'}.")
    names = {tuple(sorted(fingerprint.abilities)) for fingerprint in fingerprints}
    if len(names) != 1 or not next(iter(names)):
        raise ValueError(f"Expected the same abilities in all fingerprints, got {sorted(names)}.")
    abilities = next(iter(names))
    for name in abilities:
        results = [fingerprint.abilities[name] for fingerprint in fingerprints]
        kinds = {(result.synthetic, result.split_origin) for result in results}
        if len(kinds) != 1:
            raise ValueError(
                f"Items of {name!r} are synthetic in some fingerprints or held out in some, and not in others "
                f"{sorted(kinds)}: these are not comparable."
            )
        asked = {(frozenset(result.values), result.items.get("test")) for result in results}
        if len(asked) != 1 or not results[0].values:
            raise ValueError(f"Expected the metric of the same items for all towers in {name!r}.")
    return towers, abilities


def collect_values(fingerprints: Sequence[Fingerprint], ability: str) -> Array:
    """Returns the metric of each item, `(num_items, num_towers)`, with its sign turned so that more is better."""
    results = [fingerprint.abilities[ability] for fingerprint in fingerprints]
    sign = 1.0 if ABILITIES[ability].higher_is_better else -1.0
    return sign * np.array([[result.values[key] for result in results] for key in sorted(results[0].values)])


def collect_images(fingerprints: Sequence[Fingerprint], ability: str) -> list[str] | None:
    """Returns the image of each item, in the order of [`collect_values`], or None where each item has its own."""
    images = fingerprints[0].abilities[ability].images
    return [images[key] for key in sorted(images)] or None


def _test_pairs(fingerprints: Sequence[Fingerprint], ability: str, seed: int) -> list[dict[str, Any]]:
    values = collect_values(fingerprints, ability)
    indices = list(combinations(range(len(fingerprints)), 2))
    differences = [values[:, i] - values[:, j] for i, j in indices]
    images = collect_images(fingerprints, ability)
    p_values = [sign_flip_test(difference, seed=seed, clusters=images) for difference in differences]
    rows = zip(indices, differences, p_values, holm(p_values), strict=True)
    return [
        {
            "pair": (fingerprints[i].tower, fingerprints[j].tower),
            "difference": float(difference.mean()),
            "p": p,
            "p_holm": corrected,
        }
        for (i, j), difference, p, corrected in rows
    ]


def judge_ranks(scores: Array, seed: int) -> dict[str, float]:
    """Returns Friedman's test of scores `(num_abilities, num_towers)`, and Nemenyi's difference where it is tabled."""
    statistic, p = friedman_test(scores, seed=seed)
    result = {"statistic": statistic, "p": p}
    if 2 <= scores.shape[1] <= 10:
        result["nemenyi_difference"] = nemenyi_difference(scores.shape[1], scores.shape[0])
    return result


def statistical_ranks(fingerprints: Sequence[Fingerprint], ability: str, *, seed: int = 0) -> dict[str, float]:
    """Returns the rank of each tower in an ability, the mean rank for towers that the test items do not tell apart.

    Two towers are tied if the paired 95 percent bootstrap interval of their difference holds 0. Since such ties need
    not chain, the rank is 1 plus the number of towers that are clearly better, plus half the number of ties.

    Args:
        fingerprints (sequence of `Fingerprint`): one for each tower, of the same items.
        ability (`str`): the ability.
        seed (`int`, defaults to 0): seed of the draws.

    Raises:
        ValueError: for fewer than two towers, or towers, abilities or items that do not fit together.

    Example:

    ```python
    >>> from hf_ava_bench import AbilityResult, Fingerprint, statistical_ranks
    >>> def fingerprint(tower, share):
    ...     values = {str(i): float(i < share) for i in range(50)}
    ...     result = AbilityResult(metric="accuracy", value=share / 50, interval=(0, 1), n=50, coverage=1,
    ...                            n_unparsable=0, m0=0.1, m1=1.0, score=share / 50, score_interval=(0, 1),
    ...                            split_origin="source", synthetic=True, values=values)
    ...     return Fingerprint(tower=tower, llm="m", profile={}, seed=0, num_tokens=9, abilities={"scene": result})
    >>> statistical_ranks([fingerprint("a", 40), fingerprint("b", 40), fingerprint("c", 10)], "scene")
    {'a': 1.5, 'b': 1.5, 'c': 3.0}

    ```
    """
    towers, abilities = check_side(fingerprints)
    if ability not in abilities:
        raise ValueError(f"Expected one of the abilities {', '.join(abilities)} of the fingerprints, got {ability!r}.")
    values, images = collect_values(fingerprints, ability), collect_images(fingerprints, ability)
    ranks = {}
    for i, tower in enumerate(towers):
        better = ties = 0
        for j in range(len(towers)):
            if i == j:
                continue
            low, high = bootstrap_interval(values[:, j] - values[:, i], seed=seed, clusters=images)
            better += low > 0
            ties += low <= 0 <= high
        ranks[tower] = 1 + better + ties / 2
    return ranks
