"""From what a user writes (ids, names, "logits", a matrix, a function) to class ids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finer_cam.references import nearest_by_matrix, nearest_by_weight, select_references, without_target


@dataclass(frozen=True)
class ClassNames:
    """Number of classes and the ids of their names."""

    num_classes: int
    ids: Mapping[str, int]

    def to_id(self, value: Any, what: str) -> int:
        """Returns a class id given as a number or as a name.

        Raises:
            ValueError: if there is no such class.
        """
        if isinstance(value, str):
            if value not in self.ids:
                some = ", ".join(repr(name) for name in list(self.ids)[:5])
                known = f"the names of `config.id2label` are {some} ..." if some else "the model has no class names"
                raise ValueError(f"`{what}` must name a class of the model, got {value!r}; {known}.")
            return self.ids[value]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"`{what}` must be class ids or names, got {value!r} ({type(value).__name__}).")
        if not 0 <= value < self.num_classes:
            raise ValueError(f"`{what}` must be a class id from 0 to {self.num_classes - 1}, got {value}.")
        return value


def resolve_target(target: Any, logits: Tensor, names: ClassNames) -> tuple[Tensor, bool]:
    """Returns the targets `(B, Q)` and whether there are several for each image.

    Args:
        target: `None` for the predicted class; an id or a name for all images; B of them, one for each image; or
            `(B, Q)` nested, several for each image.
        logits: `(B, C)`.
        names: of the model's classes.

    Raises:
        ValueError: if the shape does not fit or a class does not exist.
    """
    batch_size = len(logits)
    if target is None:
        return logits.argmax(dim=1, keepdim=True), False
    values = target.tolist() if isinstance(target, Tensor) else target
    if isinstance(values, (int, str)):
        return logits.new_full((batch_size, 1), names.to_id(values, "target"), dtype=torch.long), False
    if not isinstance(values, Sequence) or len(values) != batch_size or not values:
        raise ValueError(
            f"`target` must be one class, one for each of the {batch_size} images, or a nested list of shape "
            f"(batch_size, num_targets), got {target!r}; for several targets of one image write [[1, 2, 3]]."
        )
    is_nested = not isinstance(values[0], (int, str))
    rows = values if is_nested else [[value] for value in values]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(f"`target` must have as many classes for each image, at least one, got {target!r}.")
    ids = [[names.to_id(value, "target") for value in row] for row in rows]
    return torch.tensor(ids, device=logits.device), is_nested


def resolve_references(
    references: Any,
    logits: Tensor,
    target: Tensor,
    num_references: int,
    names: ClassNames,
    get_weight: Callable[[], Tensor],
) -> Tensor:
    """Returns the references `(B, Q, T)`, padded with -1.

    Args:
        references: `"logits"`, `"weights"`, ids or names (one, T for all images, or nested for each image, as long as
            it has), a float matrix `(C, C)` with a row for each target, or a function of `(logits, target)`.
        logits: `(B, C)`.
        target: `(B, Q)`.
        num_references: T, for the first two and the matrix.
        names: of the model's classes.
        get_weight: gives the classifier's weight `(C, D)`.

    Raises:
        ValueError: if they do not fit, or if nothing but the target is left.
    """
    if isinstance(references, str) and references == "logits":
        return select_references(logits, target, num_references)
    if isinstance(references, str) and references == "weights":
        return nearest_by_weight(get_weight().to(logits.device), target, num_references)
    if callable(references):
        chosen = _check_ids(
            torch.as_tensor(references(logits, target.squeeze(1) if target.shape[1] == 1 else target)), names
        )
        chosen = chosen.to(logits.device).reshape(*target.shape, -1)
    elif isinstance(references, Tensor) and references.is_floating_point():
        if references.shape != (names.num_classes, names.num_classes):
            raise ValueError(
                f"a matrix of `references` must have the shape ({names.num_classes}, {names.num_classes}), got "
                f"{tuple(references.shape)}; ids must be integers."
            )
        chosen = nearest_by_matrix(references.to(logits.device), target, num_references)
    else:
        chosen = _explicit(references, len(logits), names).to(logits.device)[:, None].expand(-1, target.shape[1], -1)
    chosen = without_target(chosen, target)
    if (empty := (chosen < 0).all(dim=2)).any():
        image, number = empty.nonzero()[0].tolist()
        raise ValueError(
            f"`references` must have a class other than the target for each image, but image {image} is compared with "
            f"nothing but its target {int(target[image, number])}; for the base map write gamma=0."
        )
    return chosen


def _explicit(references: Any, batch_size: int, names: ClassNames) -> Tensor:
    """Returns ids `(B, T)` from one id, T of them for all images, or lists for each image."""
    values = references.tolist() if isinstance(references, Tensor) else references
    values = [values] if isinstance(values, (int, str)) else values
    if not isinstance(values, Sequence) or not values:
        raise ValueError(
            f"`references` must be 'logits', 'weights', ids or names, a matrix or a function, got {references!r}."
        )
    rows = [values] * batch_size if isinstance(values[0], (int, str)) else values
    if len(rows) != batch_size:
        raise ValueError(
            f"nested `references` must have one list for each of the {batch_size} images, got {len(rows)}."
        )
    ids = [[_reference_id(value, names) for value in row] for row in rows]
    longest = max(map(len, ids))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in ids], dtype=torch.long)


def _reference_id(value: Any, names: ClassNames) -> int:
    is_padding = isinstance(value, int) and not isinstance(value, bool) and value < 0
    return -1 if is_padding else names.to_id(value, "references")


def _check_ids(ids: Tensor, names: ClassNames) -> Tensor:
    if ids.is_floating_point() or ids.max() >= names.num_classes:
        raise ValueError(
            f"the function given as `references` must return class ids below {names.num_classes} of shape "
            f"(batch_size, num_references), got {ids}."
        )
    return ids.long()
