"""transformers' Trainer for members and students: soft targets, views by epoch, no weight decay on vectors."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from .data import ViewCollator


def soft_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean cross-entropy to target distributions: KL divergence up to a constant (V-PET, section 4).

    Args:
        logits: `(N, C)`.
        targets: `(N, C)`, rows that sum to one.
        weights: `(N,)`; the mean is over all N, also those of weight zero.

    Example:

    ```python
    >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0, 0]]))
    tensor(1.3863)

    ```
    """
    loss = -(targets * logits.float().log_softmax(dim=-1)).sum(dim=-1)
    return loss.mean() if weights is None else (weights * loss).mean()


class SelfTrainingTrainer(Trainer):
    """A Trainer on hard labels (`labels`) or target distributions (`soft_labels`, with `weight` if rows have one).

    Vectors (biases, norms, the scales of SSF) get no weight decay, and a `ViewCollator` learns the epoch, so that
    views are those of an uninterrupted run after a resume.

    Example:

    ```python
    >>> from transformers import TrainingArguments, ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8)
    >>> arguments = TrainingArguments(output_dir="out", report_to=[], use_cpu=True)
    >>> trainer = SelfTrainingTrainer(model=ViTForImageClassification(config), args=arguments)
    >>> "vit.layernorm.weight" in trainer.get_decay_parameter_names(trainer.model)
    False

    ```
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if isinstance(self.data_collator, ViewCollator):
            self.add_callback(_EpochCallback(self.data_collator))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters with weight decay: those with more than one axis."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() > 1]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The cross-entropy to hard labels, or to soft ones where there are some."""
        if "soft_labels" not in inputs:
            inputs = {key: value for key, value in inputs.items() if key != "weight"}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.args.label_smoothing_factor:
            raise ValueError("soft labels are smooth as they are; set label_smoothing_factor=0")
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = soft_cross_entropy(outputs.logits, inputs["soft_labels"], inputs.get("weight"))
        return (loss, outputs) if return_outputs else loss


class _EpochCallback(TrainerCallback):
    """Tells the collator the epoch."""

    def __init__(self, collator: ViewCollator):
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch before the first batch is drawn."""
        self.collator.epoch = int((state.epoch or 0) + 1e-6)  # what is left of a sum of steps may be short of a whole
