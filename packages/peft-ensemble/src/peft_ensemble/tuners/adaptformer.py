"""AdaptFormer: a bottleneck beside the MLP (Chen et al., arXiv 2205.13535)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import nn

from ..structure import Block, is_norm, unwrap
from .base import ScaledConfig, VisualLayer, VisualTuner
from .bottleneck import NOT_LINEAR, Bottleneck


@dataclass
class AdaptFormerConfig(ScaledConfig):
    """Configuration of AdaptFormer: MLP(ln2(x)) + scale * Up(dropout(ReLU(Down(x)))).

    x is what enters the second norm: the residual stream, un-normalised. Down is kaiming-uniform, Up and the biases
    start at zero, so the model starts exactly as pre-trained. 599,424 parameters on ViT-B/16 with a bottleneck of 32.

    Args:
        bottleneck: width of the bottleneck.
        scale: factor of the adapter's output; the paper's 0.1.
        dropout: rate in the bottleneck, in [0, 1).

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), AdaptFormerConfig(bottleneck=4))
    >>> model.print_trainable_parameters()
    trainable params: 650 || all params: 24,620 || trainable%: 2.6401

    ```
    """

    name: ClassVar[str] = "vis_adaptformer"

    bottleneck: int = 16


class AdaptFormerNorm(VisualLayer):
    """A norm that hands its input on beside its output, `(batch_size, seq_len, 2 * hidden_size)`.

    The adapter stands behind the norm but reads what enters it. Carrying that as a tensor, rather than in an attribute
    or a hook, is right under gradient checkpointing, compilation and several streams.
    """

    why_not_mergeable = NOT_LINEAR.format("AdaptFormer")

    def _add_weights(self, adapter_name: str, config: AdaptFormerConfig) -> None:
        """No weights: the adapter's are in the layer behind."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normed and original hidden states, side by side."""
        return torch.cat([self.base_layer(hidden_states), hidden_states], dim=-1)

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        return iter(())


class AdaptFormerLayer(VisualLayer):
    """An MLP with bottlenecks beside it, behind an `AdaptFormerNorm`."""

    why_not_mergeable = NOT_LINEAR.format("AdaptFormer")
    adapter_layer_names = ("vis_adaptformer_adapter",)

    def __init__(self, base_layer: nn.Module, hidden_size: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.vis_adaptformer_adapter = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: AdaptFormerConfig) -> None:
        adapter = Bottleneck(self.hidden_size, config.bottleneck, config.scale, config.dropout)
        nn.init.kaiming_uniform_(adapter.down.weight, a=sqrt(5))
        self.vis_adaptformer_adapter[adapter_name] = adapter

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output of the MLP plus the update of each active adapter."""
        normed, original = hidden_states.split(self.hidden_size, dim=-1)
        output: torch.Tensor = self.base_layer(normed)
        for name in self.adapters_in_use(self.vis_adaptformer_adapter):
            output = output + self.vis_adaptformer_adapter[name](original).to(output.dtype)
        return output

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        adapter: Any = self.vis_adaptformer_adapter[adapter_name]
        return adapter.identity_values()  # type: ignore[no-any-return]


class AdaptFormerModel(VisualTuner):
    """Puts an `AdaptFormerLayer` around the MLP of each block, and an `AdaptFormerNorm` around the norm before it."""

    prefix = "vis_adaptformer_"
    tuner_layer_cls = AdaptFormerLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [name for block in blocks for name in (block.ln2, block.mlp)]

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        if is_norm(unwrap(target)):
            return AdaptFormerNorm(target)
        return AdaptFormerLayer(target, self.structure.hidden_size)
