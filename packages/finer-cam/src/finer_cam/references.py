"""Which classes the target is compared with, and with which weights."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finer_cam.functional import uniform_weights

Weighting = Literal["uniform", "softmax", "reference-code"]


def select_references(logits: Tensor, target: Tensor, num_references: int = 3) -> Tensor:
    """Returns the classes whose logits are nearest to the target's, nearest first.

    For the predicted class these are the runners-up. For any other class they can lie above it.

    Args:
        logits (`torch.Tensor` of shape `(B, num_classes)`): class scores.
        target (`torch.Tensor` of shape `(B,)` or `(B, Q)`, int64): class to explain.
        num_references (`int`, defaults to 3, as in Finer-CAM): T; at most `num_classes - 1` are returned.

    Returns:
        `torch.Tensor` of shape `(B, T)` or `(B, Q, T)`, int64; never the target; ties go to the lower class id.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import select_references
    >>> select_references(torch.tensor([[5.0, 1.0, 4.0, 4.5]]), torch.tensor([0]), 2).tolist()
    [[3, 2]]

    ```
    """
    flat = target.reshape(len(logits), -1)
    scores = logits.float()[:, None, :].expand(-1, flat.shape[1], -1)
    distance = (scores - scores.gather(2, flat[..., None])).abs()  # (B, Q, C)
    return _nearest(distance, flat, num_references).reshape(*target.shape, -1)


def nearest_by_weight(weight: Tensor, target: Tensor, num_references: int) -> Tensor:
    """Returns the classes whose classifier weights have the largest cosine with the target's, `(B, Q, T)`.

    Args:
        weight: `(num_classes, hidden_size)`, rows of the classifier, or embeddings of class names.
        target: `(B, Q)`.
        num_references: T.
    """
    rows = weight.detach().float()
    cosines = rows[target] @ rows.T / rows.norm(dim=1).clamp(min=1e-12)  # the target's own length changes no order
    return _nearest(-cosines, target, num_references)


def nearest_by_matrix(matrix: Tensor, target: Tensor, num_references: int) -> Tensor:
    """Returns the classes with the largest entries in the target's row of a confusion matrix, `(B, Q, T)`.

    Classes with an entry of zero are no look-alikes: they are left out as padding (-1).
    """
    rows = matrix.float()[target]
    chosen = _nearest(-rows, target, num_references)
    return chosen.where(rows.gather(2, chosen) > 0, -1)


def _nearest(distance: Tensor, target: Tensor, num_references: int) -> Tensor:
    """Returns for each target `(B, Q)` the classes of the smallest distance `(B, Q, C)`, without itself."""
    distance = distance.scatter(2, target[..., None], torch.inf)
    count = min(num_references, distance.shape[2] - 1)
    return distance.sort(dim=2, stable=True).indices[..., :count]


def without_target(references: Tensor, target: Tensor) -> Tensor:
    """Returns references `(B, Q, T)` in which the target `(B, Q)` itself is replaced by padding (-1)."""
    return references.where(references != target[..., None], -1)


def reference_weights(
    logits: Tensor, references: Tensor, weighting: Literal["uniform", "softmax"] = "uniform"
) -> Tensor:
    """Returns the weight of each reference; the weights of an image add up to 1.

    Args:
        logits (`torch.Tensor` of shape `(B, num_classes)`): class scores.
        references (`torch.Tensor` of shape `(B, T)` or `(B, Q, T)`, int64): negative ids are padding of weight 0.
        weighting (`"uniform"` or `"softmax"`, defaults to `"uniform"`): the mean over references, as published
            (arXiv 2501.11309), or a softmax over the logits of the references alone. No gradient flows through either,
            so that `gamma=0` is exactly the base map.

    Returns:
        `torch.Tensor` of the shape of `references`, float32

    Raises:
        ValueError: if there is no such weighting.

    Example:

    ```python
    >>> import torch
    >>> from finer_cam import reference_weights
    >>> logits, references = torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([[1, 2, -1]])
    >>> reference_weights(logits, references, "softmax").tolist()
    [[0.5, 0.5, 0.0]]

    ```
    """
    if weighting == "uniform":
        return uniform_weights(references)
    if weighting != "softmax":
        raise ValueError(f"`weighting` must be 'uniform' or 'softmax', got {weighting!r}.")
    scores = gather_classes(logits.detach().float(), references)
    masked = scores.masked_fill(references < 0, -torch.inf)
    return masked.softmax(dim=-1).nan_to_num(0.0)  # no reference at all: 0 / 0


def gather_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns the logits of classes: `(B, C)` and `(B, ...)` give `(B, ...)`; padding gives those of class 0."""
    index = classes.clamp(min=0).reshape(len(logits), -1)
    return logits.gather(1, index).reshape(classes.shape)


def split_objective(
    logits: Tensor, target: Tensor, references: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the two parts of the objective `main - gamma * reference`, each of the shape of `target`.

    Args:
        logits: `(B, C)`, float32.
        target: `(B, Q)`.
        references: `(B, Q, T)`, negative ids are padding.
        weights: `(B, Q, T)`; `None` for those of the released code, which are probabilities of the references among
            all classes, divided by their sum plus 1e-9, with the gradient flowing through them.
    """
    main, scores = gather_classes(logits, target), gather_classes(logits, references)
    if weights is not None:
        return main, (weights * scores).sum(dim=-1)
    probabilities = gather_classes(logits.softmax(dim=1), references) * (references >= 0)
    total = probabilities.sum(dim=-1)
    return main * total / (total + 1e-9), (probabilities * scores).sum(dim=-1) / (total + 1e-9)


def objective_coefficients(
    logits: Tensor, target: Tensor, references: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of both parts of the objective with respect to the logits, `(B, Q, C)` each."""
    num_targets = target.shape[1]
    with torch.enable_grad():
        leaf = logits.detach().float()[:, None].repeat(1, num_targets, 1).requires_grad_()  # (B, Q, C)
        flat = (leaf.flatten(0, 1), target.reshape(-1, 1), references.flatten(0, 1)[:, None])
        main, reference = split_objective(*flat, None if weights is None else weights.flatten(0, 1)[:, None])
        (main_part,) = torch.autograd.grad(main.sum(), leaf, retain_graph=True)
        (reference_part,) = torch.autograd.grad(reference.sum(), leaf)
    return main_part, reference_part


@dataclass(frozen=True)
class Objective:
    """What is differentiated: the distinct ones among the parts `main` and `reference` of all targets.

    Targets that are compared with the same classes share a part: Q texts against one need Q + 1 gradients, not 2 Q.

    Args:
        coefficients: gradient of each part with respect to the logits, `(B, U, C)`, float32.
        main, reference: which of the U parts belong to each target, `(Q,)`.
    """

    coefficients: Tensor
    main: Tensor
    reference: Tensor


def build_objective(logits: Tensor, target: Tensor, references: Tensor, weights: Tensor | None) -> Objective:
    """Returns the distinct parts of the objective; the arguments are those of [`objective_coefficients`]."""
    parts = torch.cat(objective_coefficients(logits, target, references, weights), dim=1)  # (B, 2 Q, C)
    distinct, which = torch.unique(parts, dim=1, return_inverse=True)
    num_targets = target.shape[1]
    return Objective(distinct, which[:num_targets], which[num_targets:])
