"""What a sweep over all offsets says: [`SweepResult`] and the [`OperatingPoint`]s on its curve."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from partial_tune.accuracy import harmonic_or_none
from partial_tune.functional import FloatArray, ausuc_by_auroc, ausuc_by_trapezoids, harmonic_mean, sweep_curve

Criterion = Literal["overall", "balanced", "harmonic", "max_seen_drop", "constrained"]
NEEDS_VALUE = ("max_seen_drop", "constrained")


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The accuracies at one offset. Fractions; None for a group without samples.

    Args:
        gamma (`float`): offset in logit units, added to the logits of absent classes.
        seen (`float`, *optional*): accuracy on samples of seen classes among all classes, Acc(S/Y).
        absent (`float`, *optional*): accuracy on samples of absent classes among all classes, Acc(U/Y).
        overall (`float`): accuracy on all samples, Acc(Y/Y).
        uses_absent_labels (`bool`): whether labels of absent classes chose gamma, so that it is no fair result.

    Example:

    ```python
    >>> from partial_tune import OperatingPoint
    >>> point = OperatingPoint(gamma=2.0, seen=0.9, absent=0.6, overall=0.75)
    >>> round(point.harmonic, 2)
    0.72

    ```
    """

    gamma: float
    seen: float | None
    absent: float | None
    overall: float
    uses_absent_labels: bool = False

    @property
    def harmonic(self) -> float | None:
        """Harmonic mean of seen and absent accuracy."""
        return harmonic_or_none(self.seen, self.absent)

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers, with the harmonic mean."""
        return {
            "gamma": self.gamma,
            "seen": self.seen,
            "absent": self.absent,
            "overall": self.overall,
            "harmonic": self.harmonic,
            "uses_absent_labels": self.uses_absent_labels,
        }


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The accuracies at every offset. Made by [`seen_absent_sweep`] or `SweepState.result`.

    Between two neighbouring breakpoints no prediction changes: a curve of K breakpoints has K + 1 pieces.

    Args:
        gap, seen_correct, absent_correct, is_absent, seen_first (`numpy.ndarray` of shape `(N,)`):
            As in [`functional.ReducedLogits`].

    Example:

    ```python
    >>> import numpy as np
    >>> from partial_tune import ClassPartition, seen_absent_sweep
    >>> logits = np.array([[3.0, 1.0], [2.0, 1.5], [1.0, 0.4]])
    >>> result = seen_absent_sweep(logits, np.array([0, 1, 1]), ClassPartition(("ant", "bee"), seen=(0,)))
    >>> result.gamma_star, result.intervals
    (1.3, [(0.6, 2.0)])
    >>> result.operating_point("balanced").overall
    1.0

    ```
    """

    gap: FloatArray = field(repr=False)
    seen_correct: NDArray[np.bool_] = field(repr=False)
    absent_correct: NDArray[np.bool_] = field(repr=False)
    is_absent: NDArray[np.bool_] = field(repr=False)
    seen_first: NDArray[np.bool_] = field(repr=False)

    @property
    def num_seen(self) -> int:
        """Samples of seen classes."""
        return int((~self.is_absent).sum())

    @property
    def num_absent(self) -> int:
        """Samples of absent classes."""
        return int(self.is_absent.sum())

    @cached_property
    def _curve(self) -> Any:
        return sweep_curve(self.gap, ~self.is_absent & self.seen_correct, self.is_absent & self.absent_correct)

    @property
    def breakpoints(self) -> FloatArray:
        """Offsets at which a prediction changes, ascending, shape (K,)."""
        breakpoints: FloatArray = self._curve.breakpoints
        return breakpoints

    @cached_property
    def curve(self) -> dict[str, FloatArray]:
        """Arrays of shape (K + 1,) in the order of gamma: `gamma` inside each piece, `seen`, `absent`, `overall`.

        Accuracies are fractions, NaN for a group without samples. `gamma` is the middle of a piece, and 1 beyond the
        first and last breakpoint.
        """
        points = self.breakpoints
        gamma = np.array([0.0])
        if len(points):
            gamma = np.concatenate([[points[0] - 1], (points[:-1] + points[1:]) / 2, [points[-1] + 1]])
        seen_hits, absent_hits = self._curve.seen_hits, self._curve.absent_hits
        with np.errstate(invalid="ignore"):
            return {
                "gamma": gamma,
                "seen": seen_hits / np.float64(self.num_seen),
                "absent": absent_hits / np.float64(self.num_absent),
                "overall": (seen_hits + absent_hits) / len(self.gap),
            }

    @cached_property
    def ausuc(self) -> float | None:
        """Area under the curve of seen against absent accuracy, in [0, 1]. None if a group has no samples."""
        if not self.num_seen or not self.num_absent:
            return None
        return ausuc_by_trapezoids(self.curve["seen"], self.curve["absent"])

    @cached_property
    def factors(self) -> dict[str, float] | None:
        """What AUSUC is the product of: `seen_seen` and `absent_absent` accuracy, and `separability` (an AUROC)."""
        if not self.num_seen or not self.num_absent:
            return None
        arrays = (self.gap, self.seen_correct, self.absent_correct, self.is_absent)
        _, seen_seen, absent_absent, separability = ausuc_by_auroc(*arrays)
        return {"seen_seen": seen_seen, "absent_absent": absent_absent, "separability": separability}

    @property
    def _hits(self) -> FloatArray:
        hits: FloatArray = self._curve.seen_hits + self._curve.absent_hits
        return hits

    @property
    def gamma_star(self) -> float:
        """An offset of the highest overall accuracy: 0 if it is one, else the middle of the widest optimal piece.

        It needs labelled samples of absent classes, which is what fine-tuning on some classes does not have: a bound
        on what an offset can do, not a result.
        """
        return self._choose(self._hits == self._hits.max())

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """All open intervals of offsets with the highest overall accuracy, neighbours joined."""
        best = np.concatenate([[False], self._hits == self._hits.max(), [False]])
        starts, ends = (np.flatnonzero(best[1:-1] & ~best[:-2]), np.flatnonzero(best[1:-1] & ~best[2:]))
        edges = self._edges
        return [(float(edges[start]), float(edges[end + 1])) for start, end in zip(starts, ends, strict=True)]

    @cached_property
    def _edges(self) -> FloatArray:
        """Ends of the K + 1 pieces, shape (K + 2,)."""
        return np.concatenate([[-np.inf], self.breakpoints, [np.inf]])

    def _choose(self, allowed: NDArray[np.bool_]) -> float:
        """One offset of the allowed pieces: 0, else the middle of the widest finite one, else 1 beyond an end."""
        edges = self._edges
        if (allowed & (edges[:-1] < 0) & (edges[1:] > 0)).any():
            return 0.0
        width = np.where(allowed, edges[1:] - edges[:-1], -1.0)
        gamma = self.curve["gamma"]
        finite = allowed & np.isfinite(width)
        pool = np.flatnonzero(finite & (width == width[finite].max())) if finite.any() else np.flatnonzero(allowed)
        return float(gamma[pool[np.abs(gamma[pool]).argmin()]])

    def _picks_seen(self, gamma: float) -> NDArray[np.bool_]:
        """Whether the prediction of each sample is a seen class."""
        picks_seen: NDArray[np.bool_] = (self.gap > gamma) | ((self.gap == gamma) & self.seen_first)
        return picks_seen

    def at(self, gamma: float) -> OperatingPoint:
        """Returns the accuracies at one offset. On a breakpoint the tie goes to the class with the lower id."""
        is_right = np.where(self._picks_seen(gamma), self.seen_correct, self.absent_correct)
        return OperatingPoint(
            gamma=float(gamma),
            seen=float(is_right[~self.is_absent].mean()) if self.num_seen else None,
            absent=float(is_right[self.is_absent].mean()) if self.num_absent else None,
            overall=float(is_right.mean()),
        )

    def operating_point(self, criterion: Criterion, value: float | None = None) -> OperatingPoint:
        """Returns the point of the curve that is best by a criterion. All need labelled samples of absent classes.

        Of several best points it is one of the highest overall accuracy, chosen as `gamma_star` is.

        Args:
            criterion (`str`):
                - `"overall"`: the highest overall accuracy;
                - `"balanced"`: the smallest difference of seen and absent accuracy;
                - `"harmonic"`: the highest harmonic mean of the two;
                - `"max_seen_drop"`: the highest absent accuracy with a seen accuracy of at least that at 0 minus
                  `value`;
                - `"constrained"`: the highest overall accuracy with an absent accuracy of at least `value`, such as
                  that of the source model.
            value (`float`, *optional*): for the last two, a fraction.

        Raises:
            ValueError: for another criterion, a missing value, a group without samples, or a bound nothing reaches.
        """
        self._check_criterion(criterion, value)
        curve = self.curve
        seen, absent, hits = curve["seen"], curve["absent"], self._hits
        allowed = np.ones(len(hits), dtype=bool)
        score = hits
        if criterion == "balanced":
            score = -np.abs(seen - absent)
        elif criterion == "harmonic":
            score = harmonic_mean(seen, absent)
        elif criterion == "max_seen_drop":
            allowed = seen >= (self.at(0.0).seen or 0.0) - float(value or 0) - 1e-12
            score = absent
        elif criterion == "constrained":
            allowed = absent >= float(value or 0) - 1e-12
        if not allowed.any():
            raise ValueError(f"Expected a reachable bound for {criterion!r}, got {value}; no offset reaches it.")
        best = allowed & (score >= score[allowed].max() - 1e-12)
        gamma = self._choose(best & (hits == hits[best].max()))
        point = self.at(gamma)
        return OperatingPoint(
            gamma=gamma, seen=point.seen, absent=point.absent, overall=point.overall, uses_absent_labels=True
        )

    def _check_criterion(self, criterion: str, value: float | None) -> None:
        if criterion not in get_args(Criterion):
            raise ValueError(f"Expected `criterion` to be one of {', '.join(get_args(Criterion))}, got {criterion!r}.")
        if (value is None) == (criterion in NEEDS_VALUE):
            needs = "a `value` (a fraction)" if criterion in NEEDS_VALUE else "no `value`"
            raise ValueError(f"Expected {needs} for {criterion!r}, got {value}.")
        if criterion != "overall" and not (self.num_seen and self.num_absent):
            raise ValueError(f"Expected samples of seen and absent classes for {criterion!r}, got only one group.")

    def predicted_absent_rate(self, gamma: float) -> float:
        """Returns the share of samples whose prediction is an absent class; needs no labels."""
        return float((~self._picks_seen(gamma)).mean())

    def bootstrap(
        self, num_samples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Returns intervals by resampling samples with replacement, within each group.

        Args:
            num_samples (`int`, defaults to 1000): resamples.
            confidence (`float`, defaults to 0.95): of the percentile intervals.
            seed (`int`, defaults to 0): of the resampling.

        Returns:
            `dict[str, tuple[float, float]]`: low and high end for `ausuc`, `seen_seen`, `absent_absent`,
            `overall_at_0`, `gamma_star` and `overall_at_gamma_star` (found anew in each resample).

        Raises:
            ValueError: if a group has no samples or `confidence` is not in (0, 1).
        """
        if not self.num_seen or not self.num_absent:
            raise ValueError("Expected samples of seen and absent classes, got only one group.")
        if not 0 < confidence < 1 or num_samples < 1:
            raise ValueError(
                f"Expected `confidence` in (0, 1) and `num_samples` >= 1, got {confidence} and {num_samples}."
            )
        generator = np.random.default_rng(seed)
        draws = [self._resample(generator) for _ in range(num_samples)]
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        return {name: tuple(np.quantile([draw[name] for draw in draws], tails).tolist()) for name in sorted(draws[0])}

    @cached_property
    def _order(self) -> tuple[FloatArray, NDArray[np.intp]]:
        breakpoints, inverse = np.unique(self.gap[np.isfinite(self.gap)], return_inverse=True)
        return breakpoints, inverse

    def _resample(self, generator: np.random.Generator) -> dict[str, float]:
        weight = np.zeros(len(self.gap))
        for group in (~self.is_absent, self.is_absent):
            ids = np.flatnonzero(group)
            weight[ids] = generator.multinomial(len(ids), np.full(len(ids), 1 / len(ids)))
        seen_hit = weight * (~self.is_absent & self.seen_correct)
        absent_hit = weight * (self.is_absent & self.absent_correct)
        curve = sweep_curve(self.gap, seen_hit, absent_hit, self._order)
        hits = curve.seen_hits + curve.absent_hits
        return {
            "ausuc": ausuc_by_trapezoids(curve.seen_hits / self.num_seen, curve.absent_hits / self.num_absent),
            "seen_seen": seen_hit.sum() / self.num_seen,
            "absent_absent": absent_hit.sum() / self.num_absent,
            "overall_at_0": np.where(self._picks_seen(0.0), seen_hit, absent_hit).sum() / len(self.gap),
            "gamma_star": self._choose(hits == hits.max()),
            "overall_at_gamma_star": hits.max() / len(self.gap),
        }

    def to_dict(self, gammas: Iterable[float] = (0.0,)) -> dict[str, Any]:
        """Returns the summary as plain numbers: area, factors, gamma*, its intervals, accuracies at some offsets."""
        return {
            "num_seen": self.num_seen,
            "num_absent": self.num_absent,
            "num_breakpoints": len(self.breakpoints),
            "ausuc": self.ausuc,
            "factors": self.factors,
            "gamma_star": self.gamma_star,
            "intervals": self.intervals,
            "at": [self.at(gamma).to_dict() for gamma in gammas],
            "at_gamma_star": {**self.at(self.gamma_star).to_dict(), "uses_absent_labels": True},
        }
