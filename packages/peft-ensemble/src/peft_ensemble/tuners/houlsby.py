"""Adapters behind the branches: Houlsby (arXiv 1902.00751) in both, Pfeiffer (arXiv 2005.00247) behind the MLP."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..structure import Block
from .base import ScaledConfig, VisualLayer, VisualTuner, num_features
from .bottleneck import NOT_LINEAR, Bottleneck


@dataclass
class HoulsbyConfig(ScaledConfig):
    """Configuration of Houlsby adapters: y + scale * Up(dropout(ReLU(Down(y)))) behind attention and MLP.

    y is the output of the branch's last linear layer, before LayerScale, drop-path and the residual sum. 313,536
    parameters on ViT-B/16 with a bottleneck of 8. Both layers start with xavier-uniform weights and biases from
    N(0, 1e-6), so the model does not start exactly as pre-trained.

    Args:
        bottleneck: width of the bottleneck.
        scale: factor of the adapter's output.
        dropout: rate in the bottleneck, in [0, 1).

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), HoulsbyConfig(bottleneck=4))
    >>> model.print_trainable_parameters()
    trainable params: 1,234 || all params: 25,204 || trainable%: 4.8960

    ```
    """

    name: ClassVar[str] = "vis_houlsby"

    bottleneck: int = 8


@dataclass
class PfeifferConfig(HoulsbyConfig):
    """Configuration of Pfeiffer adapters: y + scale * Up(dropout(ReLU(Down(y)))) behind the MLP only.

    y is the output of the MLP's last linear layer, before LayerScale, drop-path and the residual sum. Up starts at
    zero, so the model starts exactly as pre-trained.

    Args:
        bottleneck: width of the bottleneck.
        scale: factor of the adapter's output.
        dropout: rate in the bottleneck, in [0, 1).

    Example:

    ```python
    >>> PfeifferConfig(bottleneck=16).to_dict()["peft_type"].value
    'VIS_PFEIFFER'

    ```
    """

    name: ClassVar[str] = "vis_pfeiffer"


class HoulsbyLayer(VisualLayer):
    """The last linear layer of a branch, with adapters behind it."""

    why_not_mergeable = NOT_LINEAR.format("A Houlsby adapter")
    adapter_layer_names = ("vis_houlsby_adapter",)
    starts_at_identity = False

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.add_module(self.adapter_layer_names[0], nn.ModuleDict())

    def _weights(self) -> nn.ModuleDict:
        weights: nn.ModuleDict = getattr(self, self.adapter_layer_names[0])
        return weights

    def _add_weights(self, adapter_name: str, config: HoulsbyConfig) -> None:
        size = num_features(self.get_base_layer())
        adapter = Bottleneck(size, config.bottleneck, config.scale, config.dropout)
        nn.init.xavier_uniform_(adapter.down.weight)
        if not self.starts_at_identity:
            nn.init.xavier_uniform_(adapter.up.weight)
            nn.init.normal_(adapter.down.bias, std=1e-6)
            nn.init.normal_(adapter.up.bias, std=1e-6)
        self._weights()[adapter_name] = adapter

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of the branch, changed by each active adapter in turn."""
        output: torch.Tensor = self.forward_base(*args, **kwargs)
        for name in self.adapters_in_use(self._weights()):
            output = output + self._weights()[name](output)
        return output

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        adapter: Any = self._weights()[adapter_name]
        return adapter.identity_values()  # type: ignore[no-any-return]


class PfeifferLayer(HoulsbyLayer):
    """The last linear layer of an MLP, with adapters behind it that start at zero."""

    why_not_mergeable = NOT_LINEAR.format("A Pfeiffer adapter")
    adapter_layer_names = ("vis_pfeiffer_adapter",)
    starts_at_identity = True


class HoulsbyModel(VisualTuner):
    """Puts a `HoulsbyLayer` at the end of both branches of each block."""

    prefix = "vis_houlsby_"
    tuner_layer_cls = HoulsbyLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [name for block in blocks for name in (block.o, block.fc2)]

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        return HoulsbyLayer(target)


class PfeifferModel(VisualTuner):
    """Puts a `PfeifferLayer` at the end of the MLP of each block."""

    prefix = "vis_pfeiffer_"
    tuner_layer_cls = PfeifferLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [block.fc2 for block in blocks]

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        return PfeifferLayer(target)
