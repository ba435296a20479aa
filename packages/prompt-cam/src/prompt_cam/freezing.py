"""Freezing a backbone that several models may share, and giving it back as it came."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

NAME = "_before_prompt_cam"
"""The attribute of a backbone that keeps its [`OriginalState`] while models use it."""

FLAGS = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
"""What a model's `train`, `eval` and `activation_checkpointing_enable` change in the modules of its backbone."""


@dataclass
class OriginalState:
    """How a backbone was before the first model took it.

    Args:
        trained (`list[nn.Parameter]`): what was not frozen.
        flags (`list[tuple[nn.Module, dict[str, Any]]]`): [`FLAGS`] of each module, as far as it has them.
        owners (`set[str]`): the models that use the backbone now.
    """

    trained: list[nn.Parameter]
    flags: list[tuple[nn.Module, dict[str, Any]]]
    owners: set[str] = field(default_factory=set)


def freeze(backbone: nn.Module, owner: str) -> None:
    """Freezes a backbone for one more model; the first notes how it was."""
    if not hasattr(backbone, NAME):
        trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        flags = [
            (module, {flag: getattr(module, flag) for flag in FLAGS if hasattr(module, flag)})
            for module in backbone.modules()
        ]
        setattr(backbone, NAME, OriginalState(trained, flags))
    getattr(backbone, NAME).owners.add(owner)
    backbone.requires_grad_(False)


def release(backbone: nn.Module, owner: str) -> None:
    """Takes a model off the list; with the last one the backbone becomes what it was before the first."""
    state: OriginalState | None = getattr(backbone, NAME, None)
    if state is None or owner not in state.owners:
        return
    state.owners.remove(owner)
    if state.owners:
        return
    for parameter in state.trained:
        parameter.requires_grad_(True)
    for module, flags in state.flags:
        for flag, value in flags.items():
            setattr(module, flag, value)
    delattr(backbone, NAME)
