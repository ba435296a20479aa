"""Drop-path (stochastic depth, arXiv 1603.09382) for models of transformers that have none."""

from typing import Any

import torch
from torch import nn

from .structure import find_structure


def add_drop_path(model: Any, rate: float, first: int = 0) -> None:
    """Make a model drop whole branches, for each image by itself, in training.

    The rate grows from 0 at the first block of the model to `rate` at the last, as in timm, with which both papers
    train. Adapters are inside the branches and dropped with them, in one draw. What stays is scaled up, so that means
    stay. Nothing is saved with the model, and nothing changes in evaluation.

    Args:
        model: a `PeftModel`, or a classifier of transformers.
        rate: of the last block, in [0, 1).
        first: number of the first block that drops; those before it are left alone.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    >>> model = ViTForImageClassification(config).train()
    >>> add_drop_path(model, rate=0.5)
    >>> model(torch.zeros(2, 3, 32, 32)).logits.shape
    torch.Size([2, 2])

    ```
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    blocks = find_structure(base).blocks
    for number, block in enumerate(blocks):
        share = rate * number / (len(blocks) - 1) if len(blocks) > 1 else rate
        if number >= first and share > 0:
            for name in (block.attention, block.mlp):
                base.get_submodule(name).register_forward_hook(_Drop(share))


class _Drop:
    """A hook that drops the output of a branch for some images."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not module.training:
            return output
        branch = output[0] if isinstance(output, tuple) else output
        kept = torch.rand(len(branch), *[1] * (branch.dim() - 1), device=branch.device) >= self.rate
        branch = branch * (kept / (1 - self.rate)).to(branch.dtype)
        return (branch, *output[1:]) if isinstance(output, tuple) else branch
