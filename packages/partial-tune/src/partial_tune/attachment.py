"""How a model carries an offset: the hook on its output, the mark in its config, the checks against two of them."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from partial_tune.partition import GENERIC_NAME, ClassPartition, hash_names, read_names
from partial_tune.upstream import change_logits, get_base_model, read_id2label

logger = logging.getLogger(__name__)
MARK = "logit_calibration"  # in the model's config, or on a model without one


class LogitHook:
    """A forward hook that adds an offset to the logits of an output."""

    def __init__(self, owner: object, offset: Tensor) -> None:
        self.owner, self.offset = owner, offset

    def __deepcopy__(self, memo: dict[int, Any]) -> "LogitHook":
        return LogitHook(self.owner, self.offset)  # a copied model is attached to the same calibrator

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Returns the output with calibrated logits."""
        return change_logits(output, lambda logits, dim: add_offset(logits, self.offset, dim), module, args, kwargs)


def add_offset(logits: Tensor, offset: Tensor, dim: int) -> Tensor:
    """Logits with an offset along a dimension; added in float32 at least, returned in their own dtype."""
    if logits.shape[dim] != len(offset):
        raise ValueError(
            f"Expected logits of {len(offset)} classes in dimension {dim}, got shape {tuple(logits.shape)}; for a "
            "zero-shot model pass `candidates`, the class names in the order of its prompts."
        )
    shape = [1] * logits.ndim
    shape[dim] = len(offset)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide + offset.to(logits.device).view(shape)).to(logits.dtype)


def align_offset(names: Sequence[str], offset: Tensor, candidates: Sequence[str]) -> Tensor:
    """Returns the offset of each candidate, by its name; 0, with a warning, for names without one."""
    if isinstance(candidates, str):
        raise TypeError(f"Expected `candidates` to be a list of class names, got the string {candidates!r}.")
    known = dict(zip(names, offset.tolist(), strict=True))
    if unknown := [name for name in candidates if name not in known]:
        logger.warning("No offset for classes that the calibrator does not know: %s.", unknown[:10])
    return torch.tensor([known.get(name, 0.0) for name in candidates])


def hooks_of(base: nn.Module) -> list[LogitHook]:
    """Returns the calibrations attached to a model; there is at most one."""
    return [hook for hook in base._forward_hooks.values() if isinstance(hook, LogitHook)]


def read_mark(model: nn.Module) -> dict[str, Any]:
    """Returns what a model's config says about its calibration; empty if nothing."""
    base = get_base_model(model)
    return dict(getattr(getattr(base, "config", base), MARK, None) or {})


def check_uncalibrated(model: nn.Module) -> None:
    """Raises if an offset is applied to the model's logits already."""
    base = get_base_model(model)
    if hooks_of(base):
        raise ValueError(
            f"Expected a model without calibration, but {hooks_of(base)[0].owner!r} is attached; detach it."
        )
    if read_mark(base).get("folded"):
        raise ValueError(
            f"Expected a model without calibration, but gamma {read_mark(base)['gamma']:.4g} is folded into its head; "
            "call `unfold_` of that calibrator, or load the model as it was before."
        )


def check_labels_of(model: nn.Module, partition: ClassPartition) -> None:
    """Raises if a model's named classes are not those of the partition, in their order."""
    labels = read_id2label(model)
    if labels is None or all(GENERIC_NAME.fullmatch(name) for name in labels.values()):
        return
    names = read_names(labels)
    if hash_names(names) != partition.hash:
        raise ValueError(
            f"Expected a model with the {partition.num_classes} classes of the partition in their order "
            f"({', '.join(partition.names[:4])}, ...), got {len(names)} ({', '.join(names[:4])}, ...). Build the "
            "partition from `model.config`, and keep the `id2label` of the pre-trained model."
        )
