"""[`diagnose`]: did fine-tuning break the features of the absent classes, or only their bias?"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partial_tune.accuracy import format_accuracies, group_accuracies
from partial_tune.functional import ncm_scores
from partial_tune.partition import ClassPartition
from partial_tune.regularization import effective_rank
from partial_tune.running import build_eval_loader, collect
from partial_tune.sweep import seen_absent_sweep
from partial_tune.upstream import find_head

Z = 1.96  # of a 95 percent interval
MARGIN = 0.02  # smaller differences are not worth a verdict
ADVICE = {
    "bias": "calibrate: one offset repairs it",
    "features": "an offset does not help: train more gently, or on more classes",
    "both": "calibrate, and train more gently",
    "none": "nothing to repair",
}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What fine-tuning on seen classes did to the absent ones, in the target domain.

    Args:
        verdict (`str`): `"bias"`, `"features"`, `"both"` or `"none"`.
        reason (`str`): the verdict in one line, with its numbers.
        source, tuned (`dict[str, float]`):
            The accuracies of [`group_accuracies`]; `ausuc`; `ncm_absent`, the nearest-class-mean accuracy on samples
            of absent classes; `gamma_star`, the best offset on these labels, and `absent_at_gamma_star`;
            `effective_rank` of the features.
        bias_loss (`float`): absent accuracy that the best offset wins back.
        feature_loss (`float`): accuracy within absent classes that fine-tuning cost (U/U of source minus tuned).
        ncm_loss (`float`): nearest-class-mean accuracy on absent classes that it cost.
        margin (`float`): loss from which on it counts: 2 points, or the 95 percent interval of such a difference if
            wider.

    Example:

    ```python
    >>> from partial_tune import Diagnosis
    >>> Diagnosis(verdict="none", reason="nothing lost", source={}, tuned={}, bias_loss=0, feature_loss=0, ncm_loss=0,
    ...     margin=0.02).verdict
    'none'

    ```
    """

    verdict: str
    reason: str
    source: dict[str, float | None]
    tuned: dict[str, float | None]
    bias_loss: float
    feature_loss: float
    ncm_loss: float
    margin: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers and strings."""
        return asdict(self)

    def __str__(self) -> str:
        columns = ("Y/Y", "S/Y", "U/Y", "S/S", "U/U", "ausuc", "ncm_absent", "absent_at_gamma_star")
        rows = {name: {key: values.get(key) for key in columns} for name, values in self._rows().items()}
        return f"{self.verdict}: {self.reason}\n{format_accuracies(rows)}"

    def _rows(self) -> dict[str, dict[str, float | None]]:
        return {"source": self.source, "fine-tuned": self.tuned}


def diagnose(
    source_model: nn.Module,
    tuned_model: nn.Module,
    loader: Iterable[Any],
    partition: ClassPartition,
    *,
    reference_loader: Iterable[Any] | None = None,
) -> Diagnosis:
    """Returns whether absent classes suffer from a bias, which one offset repairs, or from features that got worse.

    Bias: their accuracy among all classes (U/Y) is far below what the best offset gives. Features: their accuracy
    among themselves (U/U) is below the source model's. Nearest-class-mean accuracies are reported beside, and decide
    nothing. An analysis: it needs labels of all classes.

    Args:
        source_model, tuned_model (`nn.Module`):
            Before and after fine-tuning, not calibrated, with a linear head that sees one vector of each sample.
        loader (`Iterable`): labelled batches of all classes of the target domain.
        partition (`ClassPartition`): the classes.
        reference_loader (`Iterable`, *optional*):
            Labelled batches that make the class means. By default each half of `loader` (every second sample of a
            class) is classified with the means of the other.

    Raises:
        ValueError: if there are no samples of absent or of seen classes, or a head sees every token.

    Example:

    ```python
    >>> import torch
    >>> from partial_tune import ClassPartition, diagnose
    >>> source = torch.nn.Linear(4, 4)
    >>> _ = source.load_state_dict({"weight": 4 * torch.eye(4), "bias": torch.zeros(4)})
    >>> tuned = torch.nn.Linear(4, 4)
    >>> _ = tuned.load_state_dict({"weight": 4 * torch.eye(4), "bias": torch.tensor([9.0, 9.0, 0.0, 0.0])})
    >>> loader = [(torch.eye(4).repeat(50, 1), torch.arange(4).repeat(50))]
    >>> diagnose(source, tuned, loader, ClassPartition(tuple("abcd"), seen=(0, 1))).verdict
    'bias'

    ```
    """
    loader = build_eval_loader(loader)
    source, counts = _describe(source_model, loader, partition, reference_loader)
    tuned, _ = _describe(tuned_model, loader, partition, reference_loader)
    if not all(counts):
        raise ValueError(f"Expected samples of seen and absent classes, got {counts[0]} and {counts[1]}.")
    bias_loss = _number(tuned, "absent_at_gamma_star") - _number(tuned, "U/Y")
    feature_loss = _number(source, "U/U") - _number(tuned, "U/U")
    ncm_loss = _number(source, "ncm_absent") - _number(tuned, "ncm_absent")
    pairs = ((tuned["absent_at_gamma_star"], tuned["U/Y"]), (source["U/U"], tuned["U/U"]))
    rates = np.array([((one or 0.0) + (other or 0.0)) / 2 for one, other in pairs])
    margin = max(MARGIN, Z * float(np.sqrt(2 * rates * (1 - rates) / counts[1]).max()))
    verdict = decide(bias_loss, feature_loss, margin)
    before, after = ({name: 100 * (value or 0.0) for name, value in row.items()} for row in (source, tuned))
    reason = (
        f"absent accuracy {after['U/Y']:.1f} %, {after['absent_at_gamma_star']:.1f} % at the best offset; within "
        f"absent classes {before['U/U']:.1f} -> {after['U/U']:.1f} %, nearest class mean {before['ncm_absent']:.1f} "
        f"-> {after['ncm_absent']:.1f} %; {ADVICE[verdict]}"
    )
    return Diagnosis(
        verdict=verdict,
        reason=reason,
        source=source,
        tuned=tuned,
        bias_loss=bias_loss,
        feature_loss=feature_loss,
        ncm_loss=ncm_loss,
        margin=margin,
    )


def decide(bias_loss: float, feature_loss: float, margin: float) -> str:
    """Returns the verdict: which of the two losses are above the margin."""
    if bias_loss > margin:
        return "both" if feature_loss > margin else "bias"
    return "features" if feature_loss > margin else "none"


def _number(values: dict[str, float | None], name: str) -> float:
    return values[name] or 0.0


def _describe(
    model: nn.Module, loader: Iterable[Any], partition: ClassPartition, reference_loader: Iterable[Any] | None
) -> tuple[dict[str, float | None], tuple[int, int]]:
    head = find_head(model, partition.num_classes)
    logits, labels, features = collect(model, loader, head)
    if labels is None:
        raise ValueError("Expected batches with `labels`, got none.")
    result = seen_absent_sweep(logits, labels, partition)
    if reference_loader is None:
        scores = _cross_scores(features, labels, partition.num_classes)
    else:
        _, reference_labels, reference = collect(model, build_eval_loader(reference_loader), head)
        if reference_labels is None:
            raise ValueError("Expected batches with `labels` in `reference_loader`, got none.")
        scores = ncm_scores(features, reference, reference_labels, partition.num_classes)
    found = group_accuracies(logits, labels, partition)
    probe = group_accuracies(scores, labels, partition)
    found |= {
        "ausuc": result.ausuc,
        "ncm_absent": probe["U/Y"],
        "gamma_star": result.gamma_star,
        "absent_at_gamma_star": result.at(result.gamma_star).absent,
        "effective_rank": effective_rank(features),
    }
    return found, (result.num_seen, result.num_absent)


def _cross_scores(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Nearest-class-mean scores of each half of the samples by the class means of the other half."""
    half = torch.zeros(len(labels), dtype=torch.bool)
    for index in labels.unique():
        half[(labels == index).nonzero()[1::2, 0]] = True
    scores = torch.empty(len(labels), num_classes, dtype=torch.float64)
    for part in (half, ~half):
        scores[part] = ncm_scores(features[part], features[~part], labels[~part], num_classes)
    return scores
