"""Clusters of features, and how far two partitions of the same items agree. All in float64; logarithms are natural."""

from dataclasses import dataclass

import torch


def calinski_harabasz(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Between-cluster over within-cluster variance: [tr(B) / (k - 1)] / [tr(W) / (N - k)], k the clusters that occur.

    Args:
        features: `(N, D)`.
        labels: int64 `(N,)`.

    Returns:
        1.0 when there is no variance within clusters, 0.0 with fewer than two clusters or as many as rows.

    Example:

    ```python
    >>> calinski_harabasz(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    200.0

    ```
    """
    features = features.double()
    names, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(names) < 2 or len(names) >= len(labels):
        return 0.0
    sums = torch.zeros(len(names), features.shape[1], dtype=torch.float64).index_add_(0, inverse, features)
    means = sums / counts[:, None]
    between = (counts[:, None] * (means - features.mean(dim=0)) ** 2).sum()
    within = ((features - means[inverse]) ** 2).sum()
    if within == 0:
        return 1.0
    return float((between / (len(names) - 1)) / (within / (len(labels) - len(names))))


@dataclass(frozen=True)
class Contingency:
    """How two partitions of the same items overlap.

    Args:
        table: float64 `(R, C)`, counts of items in a cluster of the first and a cluster of the second.
    """

    table: torch.Tensor

    @staticmethod
    def of(first: torch.Tensor, second: torch.Tensor) -> "Contingency":
        """The table of two int64 label vectors of one length."""
        if first.shape != second.shape or first.dim() != 1 or not len(first):
            raise ValueError(f"expected two label vectors of one length, got {(*first.shape,)} and {(*second.shape,)}")
        rows, row_of = first.unique(return_inverse=True)
        columns, column_of = second.unique(return_inverse=True)
        counts = torch.bincount(row_of * len(columns) + column_of, minlength=len(rows) * len(columns))
        return Contingency(counts.view(len(rows), len(columns)).double())

    def pairs(self) -> tuple[float, float, float, float]:
        """Pairs of items together in both, in the first, in the second, and all pairs."""
        a, b, total = self.table.sum(dim=1), self.table.sum(dim=0), self.table.sum()
        return tuple(float((n * (n - 1) / 2).sum()) for n in (self.table, a, b, total))  # type: ignore[return-value]

    def entropies(self) -> tuple[float, float, float]:
        """Entropy of the first, of the second, and their mutual information, in nats."""
        total = self.table.sum()
        joint = self.table / total
        p, q = joint.sum(dim=1), joint.sum(dim=0)
        h_first, h_second = (float(-(x * x.log()).sum()) for x in (p, q))
        nonzero = joint > 0
        information = joint[nonzero] * (joint[nonzero] / torch.outer(p, q)[nonzero]).log()
        return max(h_first, 0.0), max(h_second, 0.0), max(float(information.sum()), 0.0)

    def is_bijection(self) -> bool:
        """Whether the two partitions are the same."""
        nonzero = self.table > 0
        return bool((nonzero.sum(dim=0) == 1).all() and (nonzero.sum(dim=1) == 1).all())


def adjusted_rand(first: torch.Tensor, second: torch.Tensor) -> float:
    """The Rand index corrected for chance: (S - E) / ((A + B) / 2 - E), E = A B / all pairs; 1 for equal partitions.

    Args:
        first, second: int64 `(N,)`.

    Example:

    ```python
    >>> round(adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])), 4)
    0.5714

    ```
    """
    contingency = Contingency.of(first, second)
    both, in_first, in_second, pairs = contingency.pairs()
    if contingency.is_bijection():
        return 1.0
    expected = in_first * in_second / pairs
    denominator = (in_first + in_second) / 2 - expected
    return (both - expected) / denominator if denominator else 0.0


def fowlkes_mallows(first: torch.Tensor, second: torch.Tensor) -> float:
    """The geometric mean of pair precision and recall: S / sqrt(A B); 0 if no pair is together in both.

    Args:
        first, second: int64 `(N,)`.

    Example:

    ```python
    >>> fowlkes_mallows(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))
    1.0

    ```
    """
    both, in_first, in_second, _ = Contingency.of(first, second).pairs()
    return float(both / (in_first * in_second) ** 0.5) if both else 0.0


def v_measure(first: torch.Tensor, second: torch.Tensor) -> float:
    """The harmonic mean of homogeneity and completeness.

    Args:
        first, second: int64 `(N,)`.

    Example:

    ```python
    >>> round(v_measure(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])), 4)
    0.8

    ```
    """
    h_first, h_second, information = Contingency.of(first, second).entropies()
    homogeneity = information / h_first if h_first else 1.0
    completeness = information / h_second if h_second else 1.0
    return 2 * homogeneity * completeness / (homogeneity + completeness) if homogeneity + completeness else 0.0


def adjusted_mutual_info(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mutual information corrected for chance: (MI - EMI) / ((H1 + H2) / 2 - EMI); 1 for equal partitions.

    Args:
        first, second: int64 `(N,)`.

    Example:

    ```python
    >>> adjusted_mutual_info(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    1.0

    ```
    """
    contingency = Contingency.of(first, second)
    if contingency.is_bijection():
        return 1.0
    h_first, h_second, information = contingency.entropies()
    expected = expected_mutual_info(contingency)
    denominator = (h_first + h_second) / 2 - expected
    if abs(denominator) < 1e-15:
        denominator = 1e-15 if denominator >= 0 else -1e-15
    return (information - expected) / denominator


def expected_mutual_info(contingency: Contingency) -> float:
    """The mutual information of random partitions with the same cluster sizes (hypergeometric model), in nats."""
    table = contingency.table
    total = table.sum()
    a, b = table.sum(dim=1), table.sum(dim=0)
    n = torch.arange(1, int(torch.minimum(a.max(), b.max())) + 1, dtype=torch.float64)  # overlaps that can occur
    expected = 0.0
    lgamma = torch.lgamma
    for size in a:  # one row of the table at a time: (columns, overlaps)
        columns = b[:, None]
        possible = (n <= size) & (n <= columns) & (n >= size + columns - total)
        safe = torch.where(possible, n, torch.maximum(size + columns - total, torch.ones(1, dtype=torch.float64)))
        log_p = lgamma(size + 1) + lgamma(columns + 1) + lgamma(total - size + 1) + lgamma(total - columns + 1)
        log_p = log_p - lgamma(total + 1) - lgamma(safe + 1) - lgamma(size - safe + 1) - lgamma(columns - safe + 1)
        log_p = log_p - lgamma(total - size - columns + safe + 1)
        gain = safe / total * (total * safe / (size * columns)).log()
        expected += float(torch.where(possible, gain * log_p.exp(), torch.zeros(1, dtype=torch.float64)).sum())
    return expected


def kmeans(
    features: torch.Tensor, num_clusters: int, seed: int = 0, num_inits: int = 3, max_iterations: int = 100
) -> torch.Tensor:
    """The clusters of Lloyd's algorithm with k-means++ seeding: those of the lowest inertia of several starts.

    Args:
        features: `(N, D)`, with at least `num_clusters` rows.
        num_clusters: k.
        seed: of the seeding. An empty cluster is moved to the row that is farthest from its centre.
        num_inits: number of starts.
        max_iterations: of each start.

    Returns:
        int64 `(N,)`.

    Example:

    ```python
    >>> labels = kmeans(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), num_clusters=2)
    >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
    True

    ```
    """
    if not 1 <= num_clusters <= len(features):
        raise ValueError(f"num_clusters must be from 1 to the number of rows, {len(features)}, got {num_clusters}")
    features = features.double()
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, torch.Tensor] | None = None
    for _ in range(num_inits):
        centres = _plus_plus(features, num_clusters, generator)
        labels = torch.full((len(features),), -1)
        for _ in range(max_iterations):
            distance, new_labels = torch.cdist(features, centres).min(dim=1)
            if torch.equal(new_labels, labels):
                break
            labels = new_labels
            centres = _centres_of(features, labels, distance, num_clusters)
        inertia = float((torch.cdist(features, centres).min(dim=1).values ** 2).sum())
        if best is None or inertia < best[0] - 1e-12:
            best = (inertia, labels)
    assert best is not None
    return best[1]


def _centres_of(
    features: torch.Tensor, labels: torch.Tensor, distance: torch.Tensor, num_clusters: int
) -> torch.Tensor:
    """The mean of each cluster; of empty ones the rows that are served worst, one each."""
    counts = torch.bincount(labels, minlength=num_clusters)
    centres = torch.zeros(num_clusters, features.shape[1], dtype=features.dtype).index_add_(0, labels, features)
    centres = centres / counts.clamp_min(1)[:, None]
    empty = (counts == 0).nonzero().flatten()
    centres[empty] = features[distance.argsort(descending=True, stable=True)[: len(empty)]]
    return centres


def _plus_plus(features: torch.Tensor, num_clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Rows drawn one after the other, each with a chance in proportion to its squared distance to those drawn."""
    first = int(torch.randint(len(features), (1,), generator=generator))
    centres = [features[first]]
    distance = (features - centres[0]).pow(2).sum(dim=1)
    for _ in range(num_clusters - 1):
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        centres.append(features[int(torch.multinomial(weights, 1, generator=generator))])
        distance = torch.minimum(distance, (features - centres[-1]).pow(2).sum(dim=1))
    return torch.stack(centres)
