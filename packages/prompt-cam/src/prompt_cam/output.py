"""What a Prompt-CAM model returns."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class PromptCAMOutput(ModelOutput):
    """What a Prompt-CAM model returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): cross-entropy, where `labels` are given.
        logits (`torch.FloatTensor` of shape `(batch_size, num_classes)`): class scores.
        class_maps (`torch.FloatTensor` of shape `(batch_size, num_classes, num_heads, rows, columns)`, *optional*):
            attention of each class prompt over the patches, with `return_maps=True`.

    Example:

    ```python
    >>> import torch
    >>> from prompt_cam import PromptCAMOutput
    >>> PromptCAMOutput(logits=torch.zeros(1, 3)).logits.shape
    torch.Size([1, 3])

    ```
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_maps: torch.Tensor | None = None
