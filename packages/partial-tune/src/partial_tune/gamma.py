"""Ways to choose gamma, the offset of the absent classes: ALG, pseudo cross-validation, a prior, or an oracle."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partial_tune.functional import FloatArray, logit_gaps
from partial_tune.partition import ClassPartition
from partial_tune.result import Criterion
from partial_tune.sweep import SweepState
from partial_tune.validation import check_labels, check_logits

logger = logging.getLogger(__name__)
RATIO_RANGE = (0.25, 4.0)  # of a pseudo-model's best offset to its average logit gap; outside, it is not trusted
HELD_OUT = 0.3  # of the pseudo-seen samples: on trained samples the seen accuracy, and with it gamma, would be biased
MIN_SEEN_FOR_PCV = 4

FineTune = Callable[[nn.Module, list[int]], nn.Module]
Predict = Callable[[nn.Module, list[int]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class GammaEstimate:
    """An offset, and what it was made from.

    Args:
        gamma (`float`): in logit units.
        method (`str`): what chose it; not always what was asked for, see `details["fallback"]`.
        num_samples (`int`): samples used.
        std (`float`, *optional*): standard deviation of the per-sample logit gap (ALG).
        uses_absent_labels (`bool`): whether labels of absent classes were used.
        details (`dict`):
            Per-class means of ALG; splits, seed and operating point of PCV; operating point of the oracle.

    Example:

    ```python
    >>> from partial_tune import GammaEstimate
    >>> GammaEstimate(gamma=1.5, method="alg", num_samples=100, std=0.2).gamma
    1.5

    ```
    """

    gamma: float
    method: str
    num_samples: int
    std: float | None = None
    uses_absent_labels: bool = False
    details: dict[str, Any] = field(default_factory=dict)


class GapCollector:
    """Collects the logit gap of each fine-tuning sample, batch by batch, for the average logit gap.

    Args:
        partition (`ClassPartition`): at least two seen classes.
        strict (`bool`, defaults to `True`): whether a sample of an absent class is an error.
    """

    def __init__(self, partition: ClassPartition, *, strict: bool = True) -> None:
        if len(partition.seen) < 2:
            raise ValueError(
                "Expected at least two seen classes for the average logit gap (it compares a sample's logits of the "
                "other seen classes), got one; pass a number as `method`, chosen on data of your own."
            )
        self.partition, self.strict = partition, strict
        self._seen_mask = torch.zeros(partition.num_classes, dtype=torch.bool)
        self._seen_mask[list(partition.seen)] = True
        self._gaps: list[FloatArray] = []
        self._labels: list[FloatArray] = []

    def update(self, logits: Any, labels: Any) -> None:
        """Adds a batch of logits of shape `(batch_size, C)` and labels of shape `(batch_size,)`."""
        logits = check_logits(logits, self.partition)
        labels = check_labels(labels, len(logits), self.partition).to(logits.device)
        absent_mask = self.partition.absent_mask.to(logits.device)
        if self.strict and absent_mask[labels].any():
            row = int(absent_mask[labels].nonzero()[0, 0])
            raise ValueError(
                f"Expected fine-tuning samples of seen classes, got {self.partition.names[int(labels[row])]!r} in row "
                f"{row} of a batch. ALG is defined on the training data, not on the test set."
            )
        gaps = logit_gaps(logits, labels, self._seen_mask.to(logits.device), absent_mask)
        if not torch.isfinite(gaps).all():
            raise ValueError("Expected finite logits for the average logit gap, got -inf (a masked class).")
        self._gaps.append(gaps.cpu().numpy())
        self._labels.append(labels.cpu().numpy())

    def estimate(self) -> GammaEstimate:
        """Returns the mean gap, its spread, and the mean of each class."""
        if not self._gaps or not sum(map(len, self._gaps)):
            raise ValueError("Expected at least one fine-tuning sample, got none.")
        gaps, labels = np.concatenate(self._gaps), np.concatenate(self._labels)
        per_class = {self.partition.names[index]: float(gaps[labels == index].mean()) for index in np.unique(labels)}
        return GammaEstimate(
            gamma=float(gaps.mean()),
            method="alg",
            num_samples=len(gaps),
            std=float(gaps.std()),
            details={"per_class": per_class},
        )


def average_logit_gap(logits: Any, labels: Any, partition: ClassPartition, *, strict: bool = True) -> GammaEstimate:
    """Returns ALG: how much lower the model rates absent classes than seen classes that are equally wrong.

    The mean over fine-tuning samples of (mean logit of the seen classes other than the label) minus (mean logit of the
    absent classes): no data of absent classes is needed. "Fine-Tuning is Fine, if Calibrated", arXiv 2409.16223.

    Args:
        logits (`torch.Tensor` or `numpy.ndarray` of shape `(N, C)`): logits of fine-tuning samples, evaluation mode.
        labels (`torch.Tensor` or `numpy.ndarray` of shape `(N,)`): their class ids.
        partition (`ClassPartition`): at least two seen classes.
        strict (`bool`, defaults to `True`):
            Whether samples of absent classes are an error. With `False` they count with the mean of all seen classes,
            as in the official code.

    Raises:
        ValueError: if there is one seen class only, a label is absent (`strict`), or a logit is not finite.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, average_logit_gap
    >>> partition = ClassPartition(("ant", "bee", "cat", "dog"), seen=(0, 2))
    >>> logits = torch.tensor([[9.0, -3.0, 1.0, -2.0]])  # an ant: 1 for the other seen class, -2.5 for absent ones
    >>> average_logit_gap(logits, torch.tensor([0]), partition).gamma
    3.5

    ```
    """
    collector = GapCollector(partition, strict=strict)
    collector.update(logits, labels)
    return collector.estimate()


def match_absent_rate(gaps: FloatArray, prior: float) -> GammaEstimate:
    """Returns the offset at which a given share of unlabeled target samples is predicted to be of an absent class.

    Ours, in neither paper: needs no label, but the share of absent classes among the samples. A sample whose seen or
    whose absent classes are all masked never flips; where the share cannot be reached for that, or because several
    samples flip together, the nearest one is.

    Args:
        gaps (`numpy.ndarray` of shape `(N,)`): largest seen minus largest absent logit, as in [`ReducedLogits`].
        prior (`float`): share of samples of absent classes, in [0, 1].

    Raises:
        ValueError: if `prior` is not in [0, 1], or no sample can flip.
    """
    if not 0 <= prior <= 1:
        raise ValueError(f"Expected `prior`, the share of absent classes, in [0, 1], got {prior}.")
    finite = np.sort(gaps[np.isfinite(gaps)])
    if not len(finite):
        raise ValueError(f"Expected samples with logits of seen and absent classes, got none among {len(gaps)}.")
    always_absent = int((gaps == -np.inf).sum())
    count = min(max(round(prior * len(gaps)) - always_absent, 0), len(finite))  # that flip: those with small gaps
    low = finite[count - 1] if count > 0 else finite[0] - 2
    high = finite[count] if count < len(finite) else finite[-1] + 2
    return GammaEstimate(
        gamma=float((low + high) / 2), method="source_match", num_samples=len(gaps), details={"prior": prior}
    )


def choose_by_oracle(state: SweepState, criterion: Criterion, value: float | None) -> GammaEstimate:
    """Returns the best offset on labelled samples of seen and absent classes: a bound, not a result."""
    result = state.result()
    if not result.num_absent:
        raise ValueError(
            "Expected labelled samples of absent classes for the oracle, got none: on seen samples alone the best "
            'offset only ever suppresses absent classes. Use `method="alg"`.'
        )
    point = result.operating_point(criterion, value)
    logger.warning(
        "gamma %.4g was chosen with labels of %d samples of absent classes: an oracle, not a fair result.",
        point.gamma,
        result.num_absent,
    )
    return GammaEstimate(
        gamma=point.gamma,
        method="oracle",
        num_samples=len(state),
        uses_absent_labels=True,
        details={"operating_point": {"criterion": criterion, "value": value, **point.to_dict()}},
    )


@dataclass(frozen=True, kw_only=True)
class PseudoSplit:
    """One split of pseudo cross-validation: its pseudo-seen classes, their best offset and average logit gap."""

    seen: tuple[int, ...]
    gamma: float
    alg: float

    @property
    def ratio(self) -> float:
        """Best offset in units of the average logit gap."""
        return self.gamma / self.alg


def draw_pseudo_partition(partition: ClassPartition, split: int, seed: int) -> tuple[ClassPartition, list[int]]:
    """Returns half of the seen classes (rounded up) as pseudo-seen, and the rest of them as pseudo-absent ids.

    In the partition all other classes are absent: the pseudo-absent and the truly absent ones get the offset.
    """
    if len(partition.seen) < MIN_SEEN_FOR_PCV:
        raise ValueError(
            f"Expected at least {MIN_SEEN_FOR_PCV} seen classes for pseudo cross-validation, got "
            f'{len(partition.seen)}; use `method="alg"`.'
        )
    generator = np.random.default_rng([seed, split])
    shuffled = generator.permutation(partition.seen).tolist()
    half = math.ceil(len(shuffled) / 2)
    return ClassPartition(partition.names, tuple(shuffled[:half])), sorted(shuffled[half:])


def hold_out(labels: np.ndarray, classes: tuple[int, ...], split: int, seed: int) -> tuple[list[int], list[int]]:
    """Returns the sample ids to train on and to hold out: 30 percent of each class, at least one of each."""
    generator = np.random.default_rng([seed, split, 1])
    train: list[int] = []
    held: list[int] = []
    for index in classes:
        ids = generator.permutation(np.flatnonzero(labels == index))
        if len(ids) < 2:
            raise ValueError(f"Expected at least two samples of each seen class, got {len(ids)} of class {index}.")
        count = max(1, round(HELD_OUT * len(ids)))
        held += ids[:count].tolist()
        train += ids[count:].tolist()
    return sorted(train), sorted(held)


def run_pseudo_split(
    partition: ClassPartition,
    labels: np.ndarray,
    fine_tune: Callable[[list[int]], nn.Module],
    predict: Predict,
    *,
    split: int,
    seed: int,
    criterion: Criterion,
    value: float | None,
) -> PseudoSplit | None:
    """Returns what one pseudo split finds, or None if no offset fulfils the criterion."""
    pseudo, pseudo_absent = draw_pseudo_partition(partition, split, seed)
    train_ids, held_ids = hold_out(labels, pseudo.seen, split, seed)
    model = fine_tune(train_ids)
    alg = average_logit_gap(*predict(model, train_ids), pseudo).gamma
    state = SweepState(pseudo)
    state.update(*predict(model, sorted([*held_ids, *np.flatnonzero(np.isin(labels, pseudo_absent)).tolist()])))
    try:
        point = state.result().operating_point(criterion, value)
    except ValueError as error:
        logger.warning("Pseudo split %d was skipped: %s", split, error)
        return None
    return PseudoSplit(seen=pseudo.seen, gamma=point.gamma, alg=alg)


def combine_splits(splits: list[PseudoSplit], alg: GammaEstimate, *, ratio: bool) -> GammaEstimate:
    """Returns the mean offset of the splits, or the mean of their ratios times the real average logit gap.

    A pseudo-model has fewer classes and drifts more, so its offsets are too large for the real one: the ratio
    transfers. Where it cannot, the estimate is another one, with a warning and the reason in `details["fallback"]`:
    the mean offset if the real gap is not positive, which no ratio mends; ALG if a pseudo-model's is not, if the ratio
    is far from 1, or if no split is left.
    """
    details: dict[str, Any] = {
        "splits": [{"seen": list(split.seen), "gamma": split.gamma, "alg": split.alg} for split in splits],
        "alg": alg.gamma,
    }
    if not splits:
        return _fall_back(alg, details, "no split has a valid operating point")
    raw = GammaEstimate(
        gamma=float(np.mean([split.gamma for split in splits])),
        method="pcv",
        num_samples=alg.num_samples,
        details=details,
    )
    if not ratio:
        return raw
    if alg.gamma <= 0:
        return _fall_back(raw, details, f"the model's logit gap is {alg.gamma:.3g}, and a ratio keeps its sign")
    if any(split.alg <= 0 for split in splits):
        return _fall_back(alg, details, "a pseudo-model has no positive logit gap")
    mean_ratio = float(np.mean([split.ratio for split in splits]))
    details["ratio"] = mean_ratio
    if not RATIO_RANGE[0] <= mean_ratio <= RATIO_RANGE[1]:
        return _fall_back(
            alg, details, f"the ratio {mean_ratio:.3g} is outside of [{RATIO_RANGE[0]}, {RATIO_RANGE[1]}]"
        )
    return replace(raw, gamma=alg.gamma * mean_ratio, method="pcv_ratio")


def _fall_back(estimate: GammaEstimate, details: dict[str, Any], reason: str) -> GammaEstimate:
    name = estimate.method.upper()
    logger.warning("Pseudo cross-validation falls back to %s (gamma %.4g): %s.", name, estimate.gamma, reason)
    return replace(estimate, details={**details, "fallback": reason})
