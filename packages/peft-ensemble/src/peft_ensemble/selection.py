"""Choosing hyper-parameters without labels (V-PET, arXiv 2503.09707, section 4).

Candidates of one method, backbone and task are ranked by seven scores of their features and predictions on the same
unlabelled images; the one of the lowest combined rank is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from .aggregation import aggregate, break_ties
from .clustering import adjusted_mutual_info, adjusted_rand, calinski_harabasz, fowlkes_mallows, kmeans, v_measure

Metric = Literal["rankme", "ami", "ari", "v_measure", "fmi", "chi", "bnm", "agreement", "cv_accuracy"]
Combine = Literal["mean_rank", "mean_sq_rank", "vote"]
METRICS: tuple[Metric, ...] = get_args(Metric)[:7]  # the seven of the paper


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
        metrics: the scores to use, by default the seven of the paper; higher is better for each. Two more are ours:
            `"agreement"`, the share of images on which a candidate names the class that most candidates of the
            ensemble name, and `"cv_accuracy"`, which needs no unlabelled images but labels: the accuracy of
            cross-validation on the labelled ones, for which `PeftEnsemble.fit` trains each candidate `num_folds` times
            more.
        combine: `"mean_sq_rank"` is the mean of squared ranks, as in the released code; `"mean_rank"` is the paper's
            text; `"vote"` counts how often a candidate is first.
        kmeans_seed: of the one clustering of features that each candidate gets.
        weights: of the metrics, in their order; equal by default.
        num_folds: of the cross-validation.

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
    weights: tuple[float, ...] | None = None
    num_folds: int = 5

    def __post_init__(self) -> None:
        if bad := [metric for metric in self.metrics if metric not in get_args(Metric)] or not self.metrics:
            raise ValueError(f"metrics must be among {', '.join(get_args(Metric))}, got {self.metrics}: {bad}")
        weights = self.weights
        if weights is not None and (len(weights) != len(self.metrics) or min(weights) < 0 or not sum(weights) > 0):
            raise ValueError(f"expected {len(self.metrics)} weights, at least 0 and not all 0, got {weights}")
        if self.num_folds < 2:
            raise ValueError(f"num_folds must be at least 2, got {self.num_folds}")
        if self.combine not in get_args(Combine):
            raise ValueError(f"combine must be one of {', '.join(get_args(Combine))}, got {self.combine!r}")

    def score(
        self,
        features: torch.Tensor,
        logits: torch.Tensor,
        consensus: torch.Tensor | None = None,
        cv_accuracy: float | None = None,
    ) -> dict[str, float]:
        """All scores of one candidate.

        Args:
            features: `(N, D)`, what the head reads. They are normalised to length one here.
            logits: `(N, C)`, on the same images, which must be the same for all candidates.
            consensus: int64 `(N,)`, the class that most members name, for `"agreement"`.
            cv_accuracy: as a fraction, for `"cv_accuracy"`.

        Returns:
            The chosen metrics and `num_predicted_classes`; NaN where features or logits are not finite.

        Raises:
            ValueError: a chosen metric lacks what it needs.
        """
        for metric, needed in (("agreement", consensus), ("cv_accuracy", cv_accuracy)):
            if metric in self.metrics and needed is None:
                raise ValueError(f"the metric {metric!r} needs what it is named after; `PeftEnsemble.fit` hands it in")
        if not (torch.isfinite(features).all() and torch.isfinite(logits).all()):
            return {**dict.fromkeys(self.metrics, float("nan")), "num_predicted_classes": 0.0}
        features = torch.nn.functional.normalize(features.double(), dim=-1)
        predicted = logits.argmax(dim=-1)
        clusters = torch.zeros(0)
        if set(self.metrics) & {"ami", "ari", "v_measure", "fmi", "chi"}:
            clusters = kmeans(features, min(logits.shape[-1], len(features)), seed=self.kmeans_seed)
        functions: dict[str, Any] = {
            "rankme": lambda: rankme(features),
            "ami": lambda: adjusted_mutual_info(predicted, clusters),
            "ari": lambda: adjusted_rand(predicted, clusters),
            "v_measure": lambda: v_measure(predicted, clusters),
            "fmi": lambda: fowlkes_mallows(predicted, clusters),
            "chi": lambda: calinski_harabasz(features, clusters),
            "bnm": lambda: bnm(logits),
            "agreement": lambda: (predicted == torch.as_tensor(consensus)).double().mean(),
            "cv_accuracy": lambda: cv_accuracy,
        }
        scores: dict[str, float] = {metric: float(functions[metric]()) for metric in self.metrics}
        return {**scores, "num_predicted_classes": float(len(predicted.unique()))}

    def score_all(
        self,
        answers: Sequence[Mapping[str, torch.Tensor]],
        consensus: torch.Tensor | None = None,
        cv_accuracies: Sequence[float] | None = None,
    ) -> list[dict[str, float]]:
        """`score` of each candidate.

        Args:
            answers: `features` and `logits` of each candidate.
            consensus: by default the vote of these candidates.
            cv_accuracies: of each candidate.
        """
        consensus = vote(answers) if consensus is None else consensus
        return [
            self.score(
                answer["features"], answer["logits"], consensus, cv_accuracies[index] if cv_accuracies else None
            )
            for index, answer in enumerate(answers)
        ]

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
        weights = torch.tensor(self.weights or [1.0] * len(self.metrics), dtype=torch.float64)[:, None]
        if self.combine == "mean_rank":
            combined = (weights * ranks).sum(dim=0) / weights.sum()
        elif self.combine == "mean_sq_rank":
            combined = (weights * ranks**2).sum(dim=0) / weights.sum()
        else:
            combined = -(weights * (ranks == ranks.min(dim=1, keepdim=True).values)).sum(dim=0)
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


def vote(answers: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor | None:
    """The class that most of those with finite logits name, int64 `(N,)`; None if there is none.

    Args:
        answers: `logits` `(N, C)` of each.

    Example:

    ```python
    >>> vote([{"logits": torch.eye(2)}, {"logits": torch.eye(2)}, {"logits": torch.eye(2).flip(0)}])
    tensor([0, 1])

    ```
    """
    finite = [answer["logits"] for answer in answers if torch.isfinite(answer["logits"]).all()]
    return break_ties(aggregate(logits := torch.stack(finite)), logits) if finite else None


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
