"""How alike the predictions of members are, and what combining them gains (the PEFT study, arXiv 2409.16434)."""

from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch

from .aggregation import aggregate, break_ties
from .validation import combine_fitted


def agreement_matrix(predictions: torch.Tensor) -> torch.Tensor:
    """Share of images on which each two members predict the same.

    Args:
        predictions: int64 `(K, N)`.

    Returns:
        float64 `(K, K)`, ones on the diagonal.

    Example:

    ```python
    >>> agreement_matrix(torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64)

    ```
    """
    return (predictions[:, None] == predictions[None]).double().mean(dim=-1)


def pair_measures(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """How the errors of two members go together.

    Args:
        first, second, labels: int64 `(N,)`.

    Returns:
        - `agreement`, and `normalised_agreement`: 0 at the least that the two accuracies force, 1 at the most;
        - `same_wrong`: of the images that both get wrong, the share with the same wrong class (NaN if there is none);
        - `double_fault`: share of images that both get wrong;
        - `yule_q`: (ad - bc) / (ad + bc) of the table right/wrong, NaN if undefined;
        - `kappa`: Cohen's, of the two predictions;
        - `error_correlation`: of the two right/wrong vectors, NaN if one is constant.

    Example:

    ```python
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> measures = pair_measures(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 1, 0]), labels)
    >>> measures["agreement"], measures["double_fault"], measures["same_wrong"]
    (0.75, 0.25, 1.0)

    ```
    """
    nan = float("nan")
    right, other = first == labels, second == labels
    agreement = (first == second).double().mean()
    accuracies = right.double().mean(), other.double().mean()
    least = max(float(accuracies[0] + accuracies[1]) - 1, 0.0)
    most = 1 - abs(float(accuracies[0] - accuracies[1]))
    both_wrong = ~right & ~other
    a, d = float((right & other).sum()), float(both_wrong.sum())
    b, c = float((right & ~other).sum()), float((~right & other).sum())
    num_classes = int(torch.cat([first, second, labels]).max()) + 1
    shares = [torch.bincount(values, minlength=num_classes).double() / len(labels) for values in (first, second)]
    chance = float((shares[0] * shares[1]).sum())
    constant = bool(right.all() or other.all() or not right.any() or not other.any())
    correlation = nan if constant else float(torch.corrcoef(torch.stack([right, other]).double())[0, 1])
    return {
        "agreement": float(agreement),
        "normalised_agreement": (float(agreement) - least) / (most - least) if most > least else 1.0,
        "same_wrong": float((first == second)[both_wrong].double().mean()) if both_wrong.any() else nan,
        "double_fault": d / len(labels),
        "yule_q": (a * d - b * c) / (a * d + b * c) if a * d + b * c else nan,
        "kappa": (float(agreement) - chance) / (1 - chance) if chance < 1 else nan,
        "error_correlation": correlation,
    }


def confident_overlap(logits: torch.Tensor, labels: torch.Tensor, fraction: float = 0.2) -> dict[str, float]:
    """How far the most confident predictions of members cover the same images.

    Args:
        logits: `(K, N, C)`.
        labels: int64 `(N,)`.
        fraction: of the images, the most confident of each member by its largest probability, in (0, 1].

    Returns:
        - `jaccard`: mean over pairs of members of the overlap of the confident images that they get right;
        - `single_coverage`: mean over members of the share of images that are confident and right;
        - `union_coverage`: share of images that are so for some member;
        - `unsure_jaccard`: as `jaccard`, of the images that members get wrong among the least confident ones.

    Example:

    ```python
    >>> logits = torch.tensor([[[9.0, 0], [1, 0]], [[1.0, 0], [9, 0]]])
    >>> confident_overlap(logits, torch.tensor([0, 0]), fraction=0.5)
    {'jaccard': 0.0, 'single_coverage': 0.5, 'union_coverage': 1.0, 'unsure_jaccard': 1.0}

    ```
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    confidence, predictions = logits.double().softmax(dim=-1).max(dim=-1)
    count = max(1, round(fraction * logits.shape[1]))
    order = torch.sort(confidence, dim=-1, descending=True, stable=True).indices
    right = predictions == labels
    good = _mark(order[:, :count], right) & right
    bad = _mark(order[:, -count:], right) & ~right
    return {
        "jaccard": _mean_jaccard(good),
        "single_coverage": float(good.double().mean()),
        "union_coverage": float(good.any(dim=0).double().mean()),
        "unsure_jaccard": _mean_jaccard(bad),
    }


def _mark(places: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """True at these places of each row."""
    return torch.zeros_like(like).scatter_(1, places, True)


def _mean_jaccard(sets: torch.Tensor) -> float:
    """The mean over pairs of rows of the size of their intersection over that of their union; 1 if both are empty."""
    overlaps = []
    for i, j in combinations(range(len(sets)), 2):
        union = int((sets[i] | sets[j]).sum())
        overlaps.append(int((sets[i] & sets[j]).sum()) / union if union else 1.0)
    return sum(overlaps) / len(overlaps) if overlaps else 1.0


@dataclass(frozen=True)
class DiversityReport:
    """How alike members are and what their ensembles gain, on labelled images.

    Args:
        names: of the members.
        accuracies: of each member.
        agreement: of each two members, `(K, K)`.
        pairs: means of `pair_measures` over pairs; undefined ones left out.
        overlap: `confident_overlap` at a fifth of the images.
        ensembles: accuracy of each combination, and of `oracle`, where one right member is enough.
        gain: of each combination over the `best` and over the `mean` member, and over the same combination of the
            `control`, each with a 95 percent bootstrap interval over images: (value, low, high).
        control: agreement and mean accuracy of the control, and the accuracy of its combinations; empty without one.

    Example:

    ```python
    >>> logits = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    >>> report = measure_diversity(logits, torch.zeros(50, dtype=torch.long), ["a", "b", "c"])
    >>> sorted(report.ensembles)
    ['majority_vote', 'mean_logits', 'mean_probs', 'oracle']

    ```
    """

    names: list[str]
    accuracies: list[float]
    agreement: list[list[float]]
    pairs: dict[str, float]
    overlap: dict[str, float]
    ensembles: dict[str, float]
    gain: dict[str, dict[str, tuple[float, float, float]]]
    control: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(map(len, [*self.names, *self.ensembles, "control agreement"]))
        lines = [
            f"{name:<{width}}  {accuracy:6.1%}" for name, accuracy in zip(self.names, self.accuracies, strict=True)
        ]
        lines.append(f"{'mean agreement':<{width}}  {self.pairs.get('agreement', 1.0):6.1%}")
        for name, accuracy in self.ensembles.items():
            value, low, high = self.gain[name]["mean"]
            lines.append(
                f"{name:<{width}}  {accuracy:6.1%}  ({value:+.1%} over the mean member, {low:+.1%} to {high:+.1%})"
            )
            if "control" in self.gain[name]:
                value, low, high = self.gain[name]["control"]
                lines.append(f"{'':<{width}}          ({value:+.1%} over the control, {low:+.1%} to {high:+.1%})")
        if self.control:
            lines.append(f"{'control agreement':<{width}}  {self.control.get('agreement', 1.0):6.1%}")
        return "\n".join(lines)


def measure_diversity(
    logits: torch.Tensor,
    labels: torch.Tensor,
    names: list[str],
    num_bootstrap: int = 1000,
    seed: int = 0,
    *,
    control: torch.Tensor | None = None,
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> DiversityReport:
    """Agreement, error overlap and ensemble gains of members.

    To say that methods differ, give the logits of one method trained from several seeds as `control`: those disagree
    too.

    Args:
        logits: `(K, N, C)`.
        labels: int64 `(N,)`.
        names: of the K members.
        num_bootstrap: samples of images for the intervals.
        seed: of those samples.
        control: `(K', N, C)`, of other members on the same images; K' = K is a fair comparison.
        held_out: logits `(K, M, C)` of the members on other labelled images and their labels `(M,)`. With them the
            report has three fitted combinations more (`calibrated_probs`, `weighted_probs`, `greedy`), and
            `js_divergence` is of calibrated probabilities.

    Example:

    ```python
    >>> right = 9 * torch.eye(3)[None]
    >>> print(measure_diversity(right, torch.arange(3), ["one"]).ensembles["mean_probs"])
    1.0

    ```
    """
    combined = _combine(logits, labels)
    probabilities = logits.double().softmax(dim=-1)
    if held_out is not None:
        probabilities, fitted = combine_fitted(logits, *held_out)
        combined |= {name: target.argmax(dim=-1) == labels for name, target in fitted.items()}
    right = (logits.argmax(dim=-1) == labels).double()  # (K, N)
    best = right[right.mean(dim=1).argmax()]
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(right.shape[1], (num_bootstrap, right.shape[1]), generator=generator)
    gain = {
        name: {
            "best": _interval(hits.double() - best, samples),
            "mean": _interval(hits.double() - right.mean(dim=0), samples),
        }
        for name, hits in combined.items()
    }
    about_control: dict[str, float] = {}
    if control is not None:
        others = _combine(control, labels)
        for name, hits in others.items():
            gain[name]["control"] = _interval(combined[name].double() - hits.double(), samples)
        about_control = {
            **_mean_pairs(control.argmax(dim=-1), labels),
            "mean_member": float((control.argmax(dim=-1) == labels).double().mean()),
            **{name: float(hits.double().mean()) for name, hits in others.items()},
        }
    return DiversityReport(
        names=list(names),
        accuracies=right.mean(dim=1).tolist(),
        agreement=agreement_matrix(logits.argmax(dim=-1)).tolist(),
        pairs=_mean_pairs(logits.argmax(dim=-1), labels) | {"js_divergence": js_divergence(probabilities)},
        overlap=confident_overlap(logits, labels),
        ensembles={name: float(hits.double().mean()) for name, hits in combined.items()},
        gain=gain,
        control=about_control,
    )


def _combine(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which images each combination gets right."""
    return {
        "majority_vote": break_ties(aggregate(logits, "mean_labels"), logits) == labels,
        "mean_probs": aggregate(logits, "mean_probs").argmax(dim=-1) == labels,
        "mean_logits": aggregate(logits, "mean_logits").argmax(dim=-1) == labels,
        "oracle": (logits.argmax(dim=-1) == labels).any(dim=0),
    }


def _mean_pairs(predictions: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The means of `pair_measures` over pairs of members, without those that are undefined."""
    pairs = combinations(range(len(predictions)), 2)
    measures = [pair_measures(predictions[i], predictions[j], labels) for i, j in pairs]
    means = {}
    for key in measures[0] if measures else ():
        values = [row[key] for row in measures if row[key] == row[key]]
        if values:
            means[key] = sum(values) / len(values)
    return means


def js_divergence(probabilities: torch.Tensor) -> float:
    """The mean Jensen-Shannon divergence of two members, in nats: 0 for equal probabilities, at most log 2.

    Args:
        probabilities: `(K, N, C)`.

    Example:

    ```python
    >>> round(js_divergence(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])), 4)
    0.6931

    ```
    """
    probabilities = probabilities.double()
    entropy = torch.special.entr(probabilities).sum(dim=-1)  # (K, N)
    values = []
    for i, j in combinations(range(len(probabilities)), 2):
        middle = torch.special.entr((probabilities[i] + probabilities[j]) / 2).sum(dim=-1)
        values.append(float((middle - (entropy[i] + entropy[j]) / 2).mean()))
    return sum(values) / len(values) if values else 0.0


def _interval(differences: torch.Tensor, samples: torch.Tensor) -> tuple[float, float, float]:
    """A mean with its 95 percent bootstrap interval."""
    means = differences[samples].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return float(differences.mean()), low, high
