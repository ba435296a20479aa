"""Do two heads rank the same towers alike? Correlations with intervals, swapped pairs, ranks with ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ava_bench.fingerprint import Fingerprint, anchor
from hf_ava_bench.functional import Array
from hf_ava_bench.statistics import (
    bootstrap_interval,
    draw_means,
    friedman_test,
    kendall_tau_b,
    nemenyi_difference,
    rank_average,
    spearman,
)


@dataclass(frozen=True, kw_only=True)
class RankingComparison:
    """How alike two sets of fingerprints of the same towers are.

    `abilities` holds for each ability, and `overall` for the mean over abilities: `tau_b`, its bootstrap interval
    `tau_interval`, `spearman`, `top_1_agrees`, `max_displacement` and the pairs of towers that are `swapped`, with
    whether each set tells them apart. `n` is the number of towers: the fewer, the coarser tau.

    Example:

    ```python
    >>> from hf_ava_bench import RankingComparison
    >>> list(RankingComparison.__dataclass_fields__)[:3]
    ['n', 'towers', 'abilities']

    ```
    """

    n: int
    towers: tuple[str, ...]
    abilities: Mapping[str, Mapping[str, Any]]
    overall: Mapping[str, Any]
    mean_ranks: tuple[Mapping[str, float], Mapping[str, float]]
    friedman: tuple[Mapping[str, float], Mapping[str, float]]
    cost_ratio: float | None


def compare_rankings(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint], *, samples: int = 1_000, seed: int = 0
) -> RankingComparison:
    """Returns how alike two heads rank the same towers, e.g. a small and a large language model.

    Intervals come from resampling the test items, the same ones for all towers of a set.

    Args:
        first, second (sequences of `Fingerprint`): one for each tower, the same towers on both sides.
        samples (`int`, defaults to 1000): bootstrap draws.
        seed (`int`, defaults to 0): their seed.

    Raises:
        ValueError: if towers or abilities differ, or there are fewer than two towers.

    Example:

    ```python
    >>> from hf_ava_bench import AbilityResult, Fingerprint, compare_rankings
    >>> def fingerprint(tower, llm, share):
    ...     values = {str(i): float(i < 100 * share) for i in range(100)}
    ...     result = AbilityResult(metric="accuracy", value=share, interval=(0, 1), n=100, coverage=1, n_unparsable=0,
    ...                            m0=0.1, m1=1.0, score=(share - 0.1) / 0.9, score_interval=(0, 1), values=values,
    ...                            split_origin="source", synthetic=True)
    ...     return Fingerprint(tower=tower, llm=llm, profile={}, seed=0, num_tokens=16, abilities={"scene": result})
    >>> small = [fingerprint("a", "small", 0.9), fingerprint("b", "small", 0.5)]
    >>> large = [fingerprint("a", "large", 0.8), fingerprint("b", "large", 0.6)]
    >>> compare_rankings(small, large).overall["tau_b"]
    1.0

    ```
    """
    sides = [{fingerprint.tower: fingerprint for fingerprint in side} for side in (first, second)]
    towers = tuple(sorted(sides[0]))
    if set(sides[0]) != set(sides[1]) or len(towers) < 2 or len(towers) != len(first) or len(towers) != len(second):
        raise ValueError(
            f"Expected the same two or more towers on both sides, each once, got {sorted(sides[0])} and "
            f"{sorted(sides[1])}."
        )
    names = {tuple(sorted(fingerprint.abilities)) for side in sides for fingerprint in side.values()}
    if len(names) != 1 or not next(iter(names)):
        raise ValueError(f"Expected the same abilities in all fingerprints, got {sorted(names)}.")
    abilities = next(iter(names))
    points = [_scores(side, towers, abilities) for side in sides]  # (num_abilities, num_towers) each
    draws = [_score_draws(side, towers, abilities, samples, seed) for side in sides]  # (samples, abilities, towers)
    table = {
        name: _compare(points[0][i], points[1][i], draws[0][:, i], draws[1][:, i], towers)
        for i, name in enumerate(abilities)
    }
    overall = _compare(
        points[0].mean(axis=0), points[1].mean(axis=0), draws[0].mean(axis=1), draws[1].mean(axis=1), towers
    )
    return RankingComparison(
        n=len(towers),
        towers=towers,
        abilities=table,
        overall=overall,
        mean_ranks=(_mean_ranks(points[0], towers), _mean_ranks(points[1], towers)),
        friedman=(_friedman(points[0], seed), _friedman(points[1], seed)),
        cost_ratio=_cost_ratio(sides),
    )


def _scores(side: Mapping[str, Fingerprint], towers: Sequence[str], abilities: Sequence[str]) -> Array:
    return np.array([[side[tower].abilities[name].score for tower in towers] for name in abilities])


def _score_draws(
    side: Mapping[str, Fingerprint], towers: Sequence[str], abilities: Sequence[str], samples: int, seed: int
) -> Array:
    """Returns bootstrap draws of anchored scores; the items of an ability are drawn alike for all towers."""
    draws = np.empty((samples, len(abilities), len(towers)))
    for i, name in enumerate(abilities):
        results = [side[tower].abilities[name] for tower in towers]
        ids = sorted(results[0].values)
        if any(sorted(result.values) != ids for result in results) or not ids:
            raise ValueError(f"Expected the metric of the same items for all towers in {name!r}.")
        values = np.array([[result.values[key] for result in results] for key in ids])
        means = draw_means(values, samples=samples, seed=seed + i)
        spans = [(result.m0, result.m1) for result in results]
        for j, (m0, m1) in enumerate(spans):
            draws[:, i, j] = [anchor(value, m0, m1) for value in means[:, j]]
    return draws


def _compare(a: Array, b: Array, a_draws: Array, b_draws: Array, towers: Sequence[str]) -> dict[str, Any]:
    taus = [kendall_tau_b(x, y) for x, y in zip(a_draws, b_draws, strict=True)]
    kept = [tau for tau in taus if not np.isnan(tau)]
    interval = tuple(np.quantile(kept, [0.025, 0.975]).tolist()) if kept else (float("nan"), float("nan"))
    rank_a, rank_b = rank_average(a), rank_average(b)
    swapped = []
    for i in range(len(towers)):
        for j in range(i + 1, len(towers)):
            if (a[i] - a[j]) * (b[i] - b[j]) < 0:
                told = [_is_told(draws[:, i] - draws[:, j]) for draws in (a_draws, b_draws)]
                pair = (towers[i], towers[j])
                swapped.append({"pair": pair, "significant_in_first": told[0], "significant_in_second": told[1]})
    return {
        "tau_b": kendall_tau_b(a, b),
        "tau_interval": interval,
        "spearman": spearman(a, b),
        "top_1_agrees": bool(np.argmax(a) == np.argmax(b)),
        "max_displacement": float(np.abs(rank_a - rank_b).max()),
        "swapped": swapped,
    }


def _is_told(differences: Array) -> bool:
    low, high = np.quantile(differences, [0.025, 0.975])
    return bool(low > 0 or high < 0)


def _mean_ranks(scores: Array, towers: Sequence[str]) -> dict[str, float]:
    ranks = np.stack([rank_average(row) for row in scores]).mean(axis=0)
    return {tower: float(rank) for tower, rank in zip(towers, ranks, strict=True)}


def _friedman(scores: Array, seed: int) -> dict[str, float]:
    statistic, p = friedman_test(scores, seed=seed)
    result = {"statistic": statistic, "p": p}
    if 2 <= scores.shape[1] <= 10:
        result["nemenyi_difference"] = nemenyi_difference(scores.shape[1], scores.shape[0])
    return result


def _cost_ratio(sides: Sequence[Mapping[str, Fingerprint]]) -> float | None:
    """Returns how many times the seconds of the first side the second took, where both are recorded."""
    seconds = [
        sum(result.cost.get("train_seconds", 0.0) for f in side.values() for result in f.abilities.values())
        for side in sides
    ]
    return seconds[1] / seconds[0] if all(seconds) else None


def statistical_ranks(fingerprints: Sequence[Fingerprint], ability: str, *, seed: int = 0) -> dict[str, float]:
    """Returns the rank of each tower in an ability, the mean rank for towers that the test items do not tell apart.

    Two towers are tied if the paired 95 percent bootstrap interval of their difference holds 0. Since such ties need
    not chain, the rank is 1 plus the number of towers that are clearly better, plus half the number of ties.

    Args:
        fingerprints (sequence of `Fingerprint`): one for each tower, of the same items.
        ability (`str`): the ability.
        seed (`int`, defaults to 0): seed of the draws.

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
    results = {fingerprint.tower: fingerprint.abilities[ability] for fingerprint in fingerprints}
    ids = sorted(next(iter(results.values())).values)
    sign = 1.0 if next(iter(results.values())).m1 > next(iter(results.values())).m0 else -1.0
    values = {tower: np.array([result.values[key] for key in ids]) * sign for tower, result in results.items()}
    ranks = {}
    for tower, own in values.items():
        better = ties = 0
        for other, theirs in values.items():
            if other == tower:
                continue
            low, high = bootstrap_interval(theirs - own, seed=seed)
            better += low > 0
            ties += low <= 0 <= high
        ranks[tower] = 1 + better + ties / 2
    return ranks
