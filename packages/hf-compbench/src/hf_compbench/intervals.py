"""Intervals and tests: Wilson, bootstrap over clusters of pairs that share an image, McNemar, Holm."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Z95 = 1.959963984540054
_CELLS = 1_000_000  # of the table of drawn clusters that is held at once


def wilson_interval(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion; (0, 1) without observations.

    Centre (p + z^2 / 2n) / (1 + z^2 / n), half width z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n).

    Args:
        successes: how many of the observations hold, from 0 to `n`; fractions of one count as such.
        n: number of observations.
        z: quantile of the normal distribution, by default that of 95 percent.

    Example:

    ```python
    >>> from hf_compbench import wilson_interval
    >>> tuple(round(end, 3) for end in wilson_interval(73, 146))
    (0.42, 0.58)

    ```
    """
    if n == 0:
        return 0.0, 1.0
    p, square = successes / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return centre - half, centre + half


def cluster_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns the sum and the number of values in each cluster, clusters in order of first appearance."""
    index: dict[str, int] = {}
    codes = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def clustered_standard_error(values: Floats, clusters: Sequence[str]) -> float:
    """Returns the standard error of the mean of values that are independent between clusters only."""
    sums, sizes = cluster_sums(values, clusters)
    count = len(sums)
    if count < 2:
        return float("nan")
    residual = sums - sizes * values.mean()
    return float(math.sqrt(count / (count - 1) * (residual**2).sum()) / len(values))


def draw_means(sums: Floats, sizes: Floats, replicates: int, generator: np.random.Generator) -> Floats:
    """Returns means over resampled clusters, shape `(replicates,)`: as many as there are, with replacement."""
    count = len(sums)
    means = np.empty(replicates)
    step = max(1, _CELLS // count)
    for start in range(0, replicates, step):
        stop = min(start + step, replicates)
        drawn = generator.integers(count, size=(stop - start, count), dtype=np.int32)
        means[start:stop] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def bootstrap_macro_mean(
    columns: Sequence[tuple[Floats, Sequence[str]]],
    *,
    replicates: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the percentile interval of the mean over columns of their mean values.

    Clusters are drawn within each column (stratified), so that a column keeps its number of clusters.

    Args:
        columns: for each column its values, shape `(n,)`, and the cluster of each value.
        replicates: number of bootstrap samples.
        seed: seed of the samples.
        level: nominal coverage.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(replicates)
    for values, clusters in columns:
        total += draw_means(*cluster_sums(values, clusters), replicates, generator)
    low, high = np.quantile(total / len(columns), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Returns the two-sided exact p-value that two models are right equally often.

    Args:
        only_a, only_b: number of questions that only one of the two answered right.
    """
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    if n <= 1000:
        tails: int = 2 * sum(math.comb(n, i) for i in range(k + 1))
        return min(1.0, tails / int(2**n))
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number by Holm's step-down method, in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
