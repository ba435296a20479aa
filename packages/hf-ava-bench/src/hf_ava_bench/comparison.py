"""Do two heads rank the same towers alike? Correlations with intervals, swapped pairs, ranks with ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ava_bench.fingerprint import Fingerprint
from hf_ava_bench.functional import Array
from hf_ava_bench.ranking import check_side, collect_images, judge_ranks
from hf_ava_bench.statistics import draw_means, kendall_tau_b, kendall_tau_b_rows, rank_average, spearman


@dataclass(frozen=True, kw_only=True)
class RankingComparison:
    """How alike two sets of fingerprints of the same towers are.

    `abilities` holds for each ability, and `overall` for the mean rank over abilities: `tau_b`, its bootstrap interval
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

    def table(self) -> str:
        """Returns the comparison as a Markdown table, with the cost below it."""
        lines = [
            "| ability | tau-b | 95 % interval | Spearman | same best | swapped pairs, told apart by both |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in [*sorted(self.abilities.items()), ("mean rank", self.overall)]:
            low, high = row["tau_interval"]
            told = sum(swap["significant_in_first"] and swap["significant_in_second"] for swap in row["swapped"])
            lines.append(
                f"| {name} | {row['tau_b']:.2f} | {low:.2f} to {high:.2f} | {row['spearman']:.2f} "
                f"| {'yes' if row['top_1_agrees'] else 'no'} | {len(row['swapped'])}, {told} |"
            )
        pairs = self.n * (self.n - 1) // 2
        note = f"{self.n} towers: each of {pairs} pairs that swaps moves tau by {2 / pairs:.2f}."
        if self.cost_ratio is not None:
            note += f" Training cost: the second took {self.cost_ratio:.2f} times the seconds of the first."
        return "\n".join([*lines, "", note])


def compare_rankings(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint], *, samples: int = 1_000, seed: int = 0
) -> RankingComparison:
    """Returns how alike two heads rank the same towers, e.g. a small and a large language model.

    Abilities are ranked by their scores, and all of them together by the mean rank. Intervals come from resampling
    the test items, the same ones for all towers.

    Args:
        first, second (sequences of `Fingerprint`): one for each tower, the same towers on both sides.
        samples (`int`, defaults to 1000): bootstrap draws.
        seed (`int`, defaults to 0): their seed.

    Raises:
        ValueError: if towers, abilities, items or kinds of items differ, or there are fewer than two towers.

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
    towers, abilities = _check_sides(first, second)
    sides = [{fingerprint.tower: fingerprint for fingerprint in side} for side in (first, second)]
    points = [_scores(side, towers, abilities) for side in sides]  # (num_abilities, num_towers) each
    draws = [_score_draws(side, towers, abilities, samples, seed) for side in sides]  # (samples, abilities, towers)
    table = {
        name: _compare(points[0][i], points[1][i], draws[0][:, i], draws[1][:, i], towers)
        for i, name in enumerate(abilities)
    }
    mean_ranks = [_mean_ranks(scores) for scores in points]
    drawn_ranks = [_mean_ranks(scores) for scores in draws]
    # Turned, since rank 1 is the best.
    overall = _compare(-mean_ranks[0], -mean_ranks[1], -drawn_ranks[0], -drawn_ranks[1], towers)
    return RankingComparison(
        n=len(towers),
        towers=towers,
        abilities=table,
        overall=overall,
        mean_ranks=(_by_tower(towers, mean_ranks[0]), _by_tower(towers, mean_ranks[1])),
        friedman=(judge_ranks(points[0], seed), judge_ranks(points[1], seed)),
        cost_ratio=_cost_ratio(sides),
    )


def _check_sides(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns towers, sorted, and abilities, which have to be those of both sides."""
    (left, abilities), (right, others) = (check_side(side) for side in (first, second))
    if set(left) != set(right):
        raise ValueError(f"Expected the same towers on both sides, got {sorted(left)} and {sorted(right)}.")
    if abilities != others:
        raise ValueError(f"Expected the same abilities on both sides, got {abilities} and {others}.")
    for name in abilities:
        kinds = [(side[0].abilities[name].synthetic, side[0].abilities[name].split_origin) for side in (first, second)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"Items of {name!r} are of two kinds, {kinds[0]} and {kinds[1]}: these are not comparable."
            )
    return tuple(sorted(left)), abilities


def _by_tower(towers: Sequence[str], values: Array) -> dict[str, float]:
    return dict(zip(towers, values.tolist(), strict=True))


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
        values = np.array([[result.values[key] for result in results] for key in ids])
        images = collect_images([side[tower] for tower in towers], name)
        means = draw_means(values, samples=samples, seed=seed + i, clusters=images)
        for j, result in enumerate(results):
            span = result.m1 - result.m0
            draws[:, i, j] = np.clip((means[:, j] - result.m0) / span, 0, 1) if span else 0.0
    return draws


def _compare(a: Array, b: Array, a_draws: Array, b_draws: Array, towers: Sequence[str]) -> dict[str, Any]:
    taus = kendall_tau_b_rows(a_draws, b_draws)
    kept = taus[~np.isnan(taus)]
    interval = tuple(np.quantile(kept, [0.025, 0.975]).tolist()) if len(kept) else (float("nan"), float("nan"))
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


def _mean_ranks(scores: Array) -> Array:
    """Returns mean ranks `(..., num_towers)` of scores `(..., num_abilities, num_towers)`, 1 for the best."""
    above = (scores[..., None, :] > scores[..., :, None]).sum(axis=-1)
    equal = (scores[..., None, :] == scores[..., :, None]).sum(axis=-1)
    means: Array = (above + (equal + 1) / 2).mean(axis=-2)
    return means


def _cost_ratio(sides: Sequence[Mapping[str, Fingerprint]]) -> float | None:
    """Returns how many times the seconds of the first side the second took, where both are recorded."""
    seconds = [
        sum(result.cost.get("train_seconds", 0.0) for f in side.values() for result in f.abilities.values())
        for side in sides
    ]
    return seconds[1] / seconds[0] if all(seconds) else None
