"""Pure functions on logits: what a sample needs for any offset, the exact sweep, its area, and the average logit gap.

Everywhere N is the number of samples, C of classes, `absent_mask` a boolean tensor of shape (C,), true for absent
classes, and gamma the offset in logit units that is added to the logits of absent classes.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
NO_FLOAT64 = ("mps",)  # device types without it: what is reduced goes on on the CPU
MAX_CHUNK_ELEMENTS = 1 << 22  # of logits copied at once: memory does not grow with N or C


class ReducedLogits(NamedTuple):
    """What is left of N rows of logits: enough for the prediction at every offset.

    Attributes:
        gap: largest seen minus largest absent logit, float64 of shape (N,).
        seen_correct: whether the best seen class is the label, shape (N,).
        absent_correct: whether the best absent class is the label, shape (N,).
        is_absent: whether the label is an absent class, shape (N,).
        seen_first: whether the best seen class has the lower id and so wins a tie, shape (N,).
    """

    gap: Tensor
    seen_correct: Tensor
    absent_correct: Tensor
    is_absent: Tensor
    seen_first: Tensor


class SweepCurve(NamedTuple):
    """Correct samples in each of the K + 1 pieces between K sorted breakpoints, where the prediction is constant.

    Attributes:
        breakpoints: ascending and finite, float64 of shape (K,).
        seen_hits: correct samples of seen classes, float64 of shape (K + 1,).
        absent_hits: correct samples of absent classes, float64 of shape (K + 1,).
    """

    breakpoints: FloatArray
    seen_hits: FloatArray
    absent_hits: FloatArray


def reduce_logits(logits: Tensor, labels: Tensor, absent_mask: Tensor) -> ReducedLogits:
    """Returns for each sample the gap between its best seen and best absent logit, and whether each is right.

    The prediction with offset gamma is the best seen class if gamma < gap and the best absent class if gamma > gap;
    ties within a group go to the lowest id. A sample whose whole group is masked with -inf has an infinite gap and
    never flips.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): any floating dtype, on any device.
        labels (`torch.Tensor` of shape `(N,)`): class ids.
        absent_mask (`torch.Tensor` of shape `(C,)`): boolean.

    Returns:
        `ReducedLogits`: on the device of `logits`, or on the CPU if that device has no float64.
    """
    device = logits.device
    mask = absent_mask.to(device)
    seen_ids, absent_ids = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
    logits = logits.detach()
    rows = max(1, min(len(logits), MAX_CHUNK_ELEMENTS // logits.shape[1]))
    seen_copy, absent_copy = (logits.new_empty(rows, len(ids)) for ids in (seen_ids, absent_ids))
    pieces = [
        (_best(chunk, seen_ids, seen_copy), _best(chunk, absent_ids, absent_copy))
        for chunk in (logits.split(rows) if len(logits) else [logits])
    ]
    seen_value, seen_id, absent_value, absent_id = (
        torch.cat(parts) for parts in zip(*((*seen, *absent) for seen, absent in pieces), strict=True)
    )
    labels = labels.to(device)
    return ReducedLogits(
        gap=to_float64(seen_value) - to_float64(absent_value),
        seen_correct=keep_device((seen_id == labels) & (seen_value > -torch.inf)),
        absent_correct=keep_device((absent_id == labels) & (absent_value > -torch.inf)),
        is_absent=keep_device(mask[labels]),
        seen_first=keep_device(seen_id < absent_id),
    )


def keep_device(values: Tensor) -> Tensor:
    """Returns a tensor where its float64 companions can be: on its device, or on the CPU."""
    return values.cpu() if values.device.type in NO_FLOAT64 else values


def to_float64(values: Tensor) -> Tensor:
    """Returns a tensor in float64, on its device, or on the CPU if that has none."""
    return keep_device(values).double()


def _best(logits: Tensor, ids: Tensor, copy: Tensor) -> tuple[Tensor, Tensor]:
    """Largest logit among some classes and its class id; the lowest id on ties. `copy` is written over."""
    group = torch.index_select(logits, 1, ids, out=copy[: len(logits)])  # one buffer: the allocator would keep many
    best = group.argmax(dim=1, keepdim=True)  # the first of equal values, unlike `max`
    return group.gather(1, best)[:, 0], ids[best[:, 0]]


def sweep_curve(
    gap: FloatArray,
    seen_hit: NDArray[Any],
    absent_hit: NDArray[Any],
    order: tuple[FloatArray, NDArray[np.intp]] | None = None,
) -> SweepCurve:
    """Returns the correct samples of every piece of the sweep over all offsets, in O(N log N).

    Args:
        gap (`numpy.ndarray` of shape `(N,)`): as in [`ReducedLogits`].
        seen_hit (`numpy.ndarray` of shape `(N,)`):
            Weight of a sample that is right while gamma < gap: one for a seen class whose best seen logit is right.
        absent_hit (`numpy.ndarray` of shape `(N,)`): weight of a sample that is right while gamma > gap.
        order (`tuple`, *optional*): `numpy.unique(gap[finite], return_inverse=True)`, if it is known already.

    Returns:
        `SweepCurve`
    """
    finite = np.isfinite(gap)
    breakpoints, inverse = np.unique(gap[finite], return_inverse=True) if order is None else order
    count = len(breakpoints)
    lost = np.bincount(inverse, weights=seen_hit[finite], minlength=count)
    won = np.bincount(inverse, weights=absent_hit[finite], minlength=count)
    always_seen = float(seen_hit[gap == np.inf].sum())
    always_absent = float(absent_hit[gap == -np.inf].sum())
    # After the first k breakpoints the k lost ones are wrong: sum what is still to come, to end at an exact zero.
    still_right = np.concatenate([np.cumsum(lost[::-1])[::-1], [0.0]])
    return SweepCurve(breakpoints, always_seen + still_right, always_absent + np.concatenate([[0.0], np.cumsum(won)]))


def harmonic_mean(seen_accuracy: FloatArray, absent_accuracy: FloatArray) -> FloatArray:
    """Returns 2 seen absent / (seen + absent), element by element; 0 where both are 0."""
    total = np.asarray(seen_accuracy + absent_accuracy)
    return np.divide(2 * seen_accuracy * absent_accuracy, total, out=np.zeros_like(total), where=total > 0)


def ausuc_by_trapezoids(seen_accuracy: FloatArray, absent_accuracy: FloatArray) -> float:
    """Returns the area under the curve of seen (x) against absent accuracy (y), vertices in the order of gamma.

    The official code sorts the vertices by seen accuracy with an unstable sort, which gives another area.
    Where masked logits keep the seen accuracy above zero at every offset, the area up to there is a rectangle.

    Args:
        seen_accuracy (`numpy.ndarray` of shape `(K + 1,)`): fractions, non-increasing.
        absent_accuracy (`numpy.ndarray` of shape `(K + 1,)`): fractions, non-decreasing.
    """
    steps = seen_accuracy[:-1] - seen_accuracy[1:]
    area = float((steps * (absent_accuracy[:-1] + absent_accuracy[1:])).sum() / 2)
    return area + float(seen_accuracy[-1] * absent_accuracy[-1])


def auroc(positives: FloatArray, negatives: FloatArray) -> float:
    """Returns the probability that a positive is larger than a negative, ties counting one half.

    Args:
        positives (`numpy.ndarray` of shape `(P,)`): P >= 1.
        negatives (`numpy.ndarray` of shape `(M,)`): M >= 1.
    """
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).sum(dtype=np.float64) / (2 * len(positives) * len(negatives)))


def ausuc_by_auroc(
    gap: FloatArray, seen_correct: NDArray[Any], absent_correct: NDArray[Any], is_absent: NDArray[Any]
) -> tuple[float, float, float, float]:
    """Returns AUSUC as within-seen accuracy x within-absent accuracy x separability, without a curve.

    The second implementation of the area: AUSUC = Acc(S/S) * Acc(U/U) * AUROC, the AUROC between the gaps of correct
    seen and of correct absent samples. Both kinds of samples have to occur.

    Args:
        gap, seen_correct, absent_correct, is_absent (`numpy.ndarray` of shape `(N,)`): as in [`ReducedLogits`].

    Returns:
        `tuple[float, float, float, float]`: the product and its three factors. The AUROC of no samples is 0.
    """
    positives = gap[~is_absent & seen_correct]
    negatives = gap[is_absent & absent_correct]
    seen_seen = len(positives) / int((~is_absent).sum())
    absent_absent = len(negatives) / int(is_absent.sum())
    separability = auroc(positives, negatives) if len(positives) and len(negatives) else 0.0
    return seen_seen * absent_absent * separability, seen_seen, absent_absent, separability


def sweep_curve_by_loop(logits: Tensor, labels: Tensor, absent_mask: Tensor) -> SweepCurve:
    """Returns what [`sweep_curve`] returns by adding one offset for each piece and taking the argmax: O(N^2 C).

    The slow reference, in float64, to be read beside the definition; also the way of the official code, which clones
    all logits for each breakpoint.
    """
    logits = logits.double()
    seen_best = logits[:, ~absent_mask].max(dim=1).values
    absent_best = logits[:, absent_mask].max(dim=1).values
    gaps = sorted(gap for gap in set((seen_best - absent_best).tolist()) if abs(gap) < float("inf"))
    middles = [(low + high) / 2 for low, high in pairwise(gaps)]
    seen_hits, absent_hits = [], []
    for gamma in [gaps[0] - 1, *middles, gaps[-1] + 1] if gaps else [0.0]:
        shifted = logits.clone()
        shifted[:, absent_mask] += gamma
        is_right = shifted.argmax(dim=1) == labels
        seen_hits.append(float((is_right & ~absent_mask[labels]).sum()))
        absent_hits.append(float((is_right & absent_mask[labels]).sum()))
    return SweepCurve(np.array(gaps), np.array(seen_hits), np.array(absent_hits))


def logit_gaps(logits: Tensor, labels: Tensor, seen_mask: Tensor, absent_mask: Tensor) -> Tensor:
    """Returns for each sample its mean logit over the other seen classes minus that over the absent classes.

    The mean of these over the fine-tuning samples is ALG, the average logit gap ("Fine-Tuning is Fine, if Calibrated",
    arXiv 2409.16223). A sample of an absent class has no label to leave out: its first mean is over all seen classes.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): any floating dtype.
        labels (`torch.Tensor` of shape `(N,)`): class ids.
        seen_mask (`torch.Tensor` of shape `(C,)`): boolean; at least two classes.
        absent_mask (`torch.Tensor` of shape `(C,)`): boolean; at least one class.

    Returns:
        `torch.Tensor` of shape `(N,)`: float64.
    """
    logits = to_float64(logits)
    labels, seen_mask, absent_mask = (values.to(logits.device) for values in (labels, seen_mask, absent_mask))
    is_label = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], value=True)
    others = seen_mask & ~is_label
    seen_mean = torch.where(others, logits, 0.0).sum(dim=1) / others.sum(dim=1)
    return seen_mean - logits[:, absent_mask].mean(dim=1)


def ncm_scores(features: Tensor, reference_features: Tensor, reference_labels: Tensor, num_classes: int) -> Tensor:
    """Returns the cosine of each feature vector with the mean direction of each class: a nearest-class-mean probe.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): features of the samples to classify.
        reference_features (`torch.Tensor` of shape `(M, D)`): labelled features that make the class means.
        reference_labels (`torch.Tensor` of shape `(M,)`): class ids.
        num_classes (`int`): C.

    Returns:
        `torch.Tensor` of shape `(N, C)`: float64; -inf for a class without reference.
    """
    reference = torch.nn.functional.normalize(to_float64(reference_features), dim=1)
    reference_labels = reference_labels.to(reference.device)
    sums = reference.new_zeros(num_classes, reference.shape[1]).index_add_(0, reference_labels, reference)
    means = torch.nn.functional.normalize(sums, dim=1)
    scores = torch.nn.functional.normalize(to_float64(features), dim=1) @ means.T
    has_reference = torch.bincount(reference_labels, minlength=num_classes) > 0
    return scores.masked_fill(~has_reference, -torch.inf)
