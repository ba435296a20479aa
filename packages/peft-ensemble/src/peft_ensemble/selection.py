"""Choosing hyper-parameters without labels (V-PET, arXiv 2503.09707, section 4).

Candidates of one method, backbone and task are ranked by seven scores of their features and predictions on the same
unlabelled images; the one of the lowest combined rank is taken.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from .clustering import adjusted_mutual_info, adjusted_rand, calinski_harabasz, fowlkes_mallows, kmeans, v_measure

Metric = Literal["rankme", "ami", "ari", "v_measure", "fmi", "chi", "bnm"]
Combine = Literal["mean_rank", "mean_sq_rank", "vote"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def rankme(features: torch.Tensor) -> float:
    """The effective rank of features: exp of the entropy of their normalised singular values (RankMe, arXiv
    2210.02885).

    Args:
        features: `(N, D)`, not centred. Singular values come from the smaller Gram matrix in float64.

    Example:

    ```python
    >>> round(rankme(torch.eye(4)), 3)
    4.0

    ```
    """
    matrix = features.double()
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def bnm(logits: torch.Tensor) -> float:
    """The nuclear norm of the predicted probabilities, divided by N: confident and diverse is high.

    Args:
        logits: `(N, C)`.

    Example:

    ```python
    >>> round(bnm(100 * torch.eye(2).repeat(2, 1)), 4)  # half of the rows each
    0.7071

    ```
    """
    probabilities = logits.double().softmax(dim=-1)
    return float(torch.linalg.matrix_norm(probabilities, ord="nuc") / len(logits))


@dataclass(frozen=True, kw_only=True)
class UnsupervisedSelector:
    """Scores candidates on unlabelled images and chooses one.

    Args:
        metrics: the scores to use, all seven by default; higher is better for each.
        combine: `"mean_sq_rank"` is the mean of squared ranks, as in the released code; `"mean_rank"` is the paper's
            text; `"vote"` counts how often a candidate is first.
        kmeans_seed: of the one clustering of features that each candidate gets.

    Example:

    ```python
    >>> selector = UnsupervisedSelector(metrics=("bnm",))
    >>> sharp, vague = 9 * torch.eye(3).repeat(2, 1), torch.zeros(6, 3)
    >>> scores = [selector.score(torch.eye(6), logits) for logits in (vague, sharp)]
    >>> selector.select(scores).index
    1

    ```
    """

    metrics: tuple[Metric, ...] = METRICS
    combine: Combine = "mean_sq_rank"
    kmeans_seed: int = 0

    def __post_init__(self) -> None:
        if bad := [metric for metric in self.metrics if metric not in METRICS] or not self.metrics:
            raise ValueError(f"metrics must be among {', '.join(METRICS)}, got {self.metrics}: {bad}")
        if self.combine not in get_args(Combine):
            raise ValueError(f"combine must be one of {', '.join(get_args(Combine))}, got {self.combine!r}")

    def score(self, features: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
        """All scores of one candidate.

        Args:
            features: `(N, D)`, what the head reads. They are normalised to length one here.
            logits: `(N, C)`, on the same images, which must be the same for all candidates.

        Returns:
            The chosen metrics and `num_predicted_classes`; NaN where features or logits are not finite.
        """
        if not (torch.isfinite(features).all() and torch.isfinite(logits).all()):
            return {**dict.fromkeys(self.metrics, float("nan")), "num_predicted_classes": 0.0}
        features = torch.nn.functional.normalize(features.double(), dim=-1)
        predicted = logits.argmax(dim=-1)
        clusters = kmeans(features, min(logits.shape[-1], len(features)), seed=self.kmeans_seed)
        functions: dict[str, Any] = {
            "rankme": lambda: rankme(features),
            "ami": lambda: adjusted_mutual_info(predicted, clusters),
            "ari": lambda: adjusted_rand(predicted, clusters),
            "v_measure": lambda: v_measure(predicted, clusters),
            "fmi": lambda: fowlkes_mallows(predicted, clusters),
            "chi": lambda: calinski_harabasz(features, clusters),
            "bnm": lambda: bnm(logits),
        }
        scores: dict[str, float] = {metric: float(functions[metric]()) for metric in self.metrics}
        return {**scores, "num_predicted_classes": float(len(predicted.unique()))}

    def select(self, scores: list[dict[str, float]]) -> "Selection":
        """The choice among candidates.

        Candidates with a score that is not finite, and those that predict a single class while others do not, are out.

        Raises:
            ValueError: no candidate, or none with finite scores.
        """
        finite = [all(torch.isfinite(torch.tensor(row[metric])) for metric in self.metrics) for row in scores]
        usable = [index for index, ok in enumerate(finite) if ok]
        if not usable:
            raise ValueError(f"expected a candidate with finite scores, got {scores}")
        diverse = [index for index in usable if scores[index].get("num_predicted_classes", 2) > 1]
        usable = diverse or usable
        ranks = torch.stack([average_ranks([scores[index][metric] for index in usable]) for metric in self.metrics])
        if self.combine == "mean_rank":
            combined = ranks.mean(dim=0)
        elif self.combine == "mean_sq_rank":
            combined = (ranks**2).mean(dim=0)
        else:
            combined = -(ranks == ranks.min(dim=1, keepdim=True).values).double().sum(dim=0)
        values = dict(zip(usable, combined.tolist(), strict=True))
        return Selection(index=min(values, key=lambda index: (values[index], index)), combined=values, scores=scores)


@dataclass(frozen=True)
class Selection:
    """A choice among candidates.

    Args:
        index: the candidate that was chosen; the first of equals.
        combined: the combined rank of each candidate that was not left out; lower is better.
        scores: the scores of all candidates.

    Example:

    ```python
    >>> selection = UnsupervisedSelector(metrics=("ami",)).select([{"ami": 0.2}, {"ami": 0.7}])
    >>> selection.index, selection.regret([0.5, 0.8])["regret"]
    (1, 0.0)

    ```
    """

    index: int
    combined: dict[int, float]
    scores: list[dict[str, float]]

    def regret(self, accuracies: list[float]) -> dict[str, float]:
        """What choosing without labels has cost, given the true accuracy of each candidate.

        Returns:
            `oracle` (the best accuracy), `selected`, `random` (the mean), `regret` (oracle - selected) and
            `random_regret` (oracle - random), all as fractions.
        """
        best, mean = max(accuracies), sum(accuracies) / len(accuracies)
        selected = accuracies[self.index]
        return {
            "oracle": best,
            "selected": selected,
            "random": mean,
            "regret": best - selected,
            "random_regret": best - mean,
        }


def average_ranks(values: list[float]) -> torch.Tensor:
    """Ranks from 1 for the largest value; equal values share the mean of their ranks.

    Example:

    ```python
    >>> average_ranks([0.5, 0.9, 0.5])
    tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)

    ```
    """
    numbers = torch.tensor(values, dtype=torch.float64)
    larger = (numbers[None, :] > numbers[:, None]).sum(dim=1)
    equal = (numbers[None, :] == numbers[:, None]).sum(dim=1)
    return larger.double() + (equal.double() + 1) / 2
