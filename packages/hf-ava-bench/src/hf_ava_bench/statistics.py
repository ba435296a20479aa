"""Intervals and tests: paired, seeded, without a distribution assumed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hf_ava_bench.functional import Array

NEMENYI_05 = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
"""Critical values of the studentised range for 2 to 10 systems, divided by the root of 2 (Demsar 2006, Table 5a)."""


LARGEST = 2_000_000
"""Numbers that are drawn at once."""


def draw_means(
    values: npt.ArrayLike, *, samples: int = 2_000, seed: int = 0, clusters: Sequence[str] | None = None
) -> Array:
    """Returns bootstrap means `(samples, ...)` of values `(n, ...)`, drawn by item or by cluster.

    Rows of several columns are drawn together: the columns stay paired.

    Args:
        values (array of shape `(n, ...)`): the metric of each item.
        samples (`int`, defaults to 2000): number of draws.
        seed (`int`, defaults to 0): seed of the draws.
        clusters (sequence of `str`, *optional*): what belongs together, e.g. the image of each item.
    """
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    sums, counts = _sum_clusters(array, clusters)
    means = np.empty((samples, *array.shape[1:]))
    step = max(1, LARGEST // sums.size)
    for start in range(0, samples, step):
        part = means[start : start + step]
        chosen = rng.integers(0, len(sums), (len(part), len(sums)))
        sizes = counts[chosen].sum(axis=1).reshape(-1, *[1] * (array.ndim - 1))
        part[:] = sums[chosen].sum(axis=1) / sizes
    return means


def _sum_clusters(array: Array, clusters: Sequence[str] | None) -> tuple[Array, Array]:
    """Returns the sum of the items of each cluster, and their number; an item is its own cluster without any."""
    if clusters is None:
        return array, np.ones(len(array))
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), *array.shape[1:]))
    np.add.at(sums, index, array)
    return sums, np.bincount(index).astype(float)


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    level: float = 0.95,
    samples: int = 2_000,
    seed: int = 0,
    clusters: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Returns the percentile interval of a mean.

    Example:

    ```python
    >>> from hf_ava_bench.statistics import bootstrap_interval
    >>> low, high = bootstrap_interval([0, 1] * 50)
    >>> 0.38 < low < 0.42 and 0.58 < high < 0.62
    True

    ```
    """
    means = draw_means(values, samples=samples, seed=seed, clusters=clusters)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_test(
    differences: npt.ArrayLike, *, samples: int = 2_000, seed: int = 0, clusters: Sequence[str] | None = None
) -> float:
    """Returns the two-sided p value of "the mean paired difference is 0", from random signs, one for each cluster.

    Example:

    ```python
    >>> from hf_ava_bench.statistics import sign_flip_test
    >>> sign_flip_test([1.0] * 20) < 0.01, sign_flip_test([1.0, -1.0] * 10) > 0.5
    (True, True)

    ```
    """
    array, _ = _sum_clusters(np.asarray(differences, dtype=np.float64), clusters)
    signs = np.random.default_rng(seed).integers(0, 2, (samples, len(array))) * 2 - 1
    flipped = np.abs((signs * array).mean(axis=1))
    return float((1 + (flipped >= abs(array.mean()) - 1e-12).sum()) / (samples + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted for their number (Holm 1979), in their order.

    Example:

    ```python
    >>> from hf_ava_bench.statistics import holm
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    ```
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def rank_average(values: npt.ArrayLike) -> Array:
    """Returns ranks from 1, the largest value first, the mean rank where values are equal.

    Example:

    ```python
    >>> from hf_ava_bench.statistics import rank_average
    >>> rank_average([0.5, 0.9, 0.5]).tolist()
    [2.5, 1.0, 2.5]

    ```
    """
    array = np.asarray(values, dtype=np.float64)
    above = (array[None, :] > array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    ranks: Array = above + (equal + 1) / 2
    return ranks


def kendall_tau_b(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Returns Kendall's tau-b of `(n,)` and `(n,)`, which corrects for ties; NaN where one side is all ties.

    Example:

    ```python
    >>> from hf_ava_bench.statistics import kendall_tau_b
    >>> kendall_tau_b([1, 2, 3, 4], [1, 2, 4, 3])
    0.6666666666666666

    ```
    """
    return float(kendall_tau_b_rows(a, b))


def kendall_tau_b_rows(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Returns Kendall's tau-b of each row of `(..., n)` and `(..., n)`."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (a, b))
    i, j = np.triu_indices(x.shape[-1], 1)
    x, y = np.sign(x[..., i] - x[..., j]), np.sign(y[..., i] - y[..., j])
    size = np.sqrt((x != 0).sum(axis=-1) * (y != 0).sum(axis=-1))
    taus: Array = np.divide((x * y).sum(axis=-1), size, out=np.full(size.shape, np.nan), where=size > 0)
    return taus


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Returns Spearman's rank correlation; NaN where one side is all ties."""
    x, y = (rank - rank.mean() for rank in (rank_average(a), rank_average(b)))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size else float("nan")


def friedman_test(scores: npt.ArrayLike, *, samples: int = 5_000, seed: int = 0) -> tuple[float, float]:
    """Returns Friedman's statistic over abilities and its p value from permutations within each ability.

    Args:
        scores (array of shape `(num_abilities, num_towers)`): higher is better.
    """
    ranks = np.stack([rank_average(row) for row in np.asarray(scores, dtype=np.float64)])
    observed = float(_friedman_statistic(ranks))
    rng = np.random.default_rng(seed)
    permuted = _friedman_statistic(rng.permuted(np.repeat(ranks[None], samples, axis=0), axis=2))
    p = (1 + (permuted >= observed - 1e-12).sum()) / (samples + 1)
    return observed, float(p)


def _friedman_statistic(ranks: Array) -> Array:
    """Returns Friedman's statistic of ranks `(..., num_abilities, num_towers)`."""
    n, k = ranks.shape[-2:]
    statistic: Array = 12 * n / (k * (k + 1)) * ((ranks.mean(axis=-2) - (k + 1) / 2) ** 2).sum(axis=-1)
    return statistic


def nemenyi_difference(num_towers: int, num_abilities: int) -> float:
    """Returns the difference of mean ranks above which two towers differ at the level 0.05.

    Example:

    ```python
    >>> from hf_ava_bench.statistics import nemenyi_difference
    >>> round(nemenyi_difference(4, 14), 3)
    1.254

    ```
    """
    if not 2 <= num_towers <= 10:
        raise ValueError(f"The table of critical values is for 2 to 10 towers, got {num_towers}.")
    return float(NEMENYI_05[num_towers - 2] * np.sqrt(num_towers * (num_towers + 1) / (6 * num_abilities)))
