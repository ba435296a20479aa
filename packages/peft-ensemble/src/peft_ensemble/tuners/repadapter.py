"""RepAdapter: a linear adapter before each branch, mergeable (Luo et al., arXiv 2302.08106)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..structure import Block, unwrap
from .base import NewValues, ScaledConfig, VisualLayer, VisualTuner, num_features, project


@dataclass
class RepAdapterConfig(ScaledConfig):
    """Configuration of RepAdapter: h + scale * (B(dropout(A h + a)) + b) on the output of both norms.

    B is a 1x1 convolution with two groups. A is xavier-uniform; a, B and b start at zero, so the model starts exactly
    as pre-trained. 461,184 parameters on ViT-B/16 with a bottleneck of 16.

    Args:
        bottleneck: width of the bottleneck, an even number.
        scale: factor of the adapter's output.
        dropout: rate in the bottleneck, in [0, 1).

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), RepAdapterConfig(bottleneck=4))
    >>> model.print_trainable_parameters()
    trainable params: 978 || all params: 24,948 || trainable%: 3.9202

    ```
    """

    name: ClassVar[str] = "vis_repadapter"

    bottleneck: int = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck % 2:
            raise ValueError(f"bottleneck must be even, for the two groups of RepAdapter, got {self.bottleneck}")


class GroupedAdapter(nn.Module):
    """scale * (B(dropout(A h + a)) + b), where B maps each half of the bottleneck to one half of the channels."""

    def __init__(self, hidden_size: int, config: RepAdapterConfig):
        super().__init__()
        self.down = nn.Linear(hidden_size, config.bottleneck)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Conv1d(config.bottleneck, hidden_size, kernel_size=1, groups=2)
        self.scale = config.scale
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def up_matrix(self) -> torch.Tensor:
        """B as a dense matrix `(hidden_size, bottleneck)` of two blocks."""
        first, second = self.up.weight[..., 0].chunk(2)
        matrix: torch.Tensor = torch.block_diag(first, second)
        return matrix

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The update to add, in the precision of the input."""
        hidden = self.dropout(project(self.down, hidden_states))
        update: torch.Tensor = nn.functional.linear(hidden, self.up_matrix(), self.up.bias)
        return (self.scale * update).to(hidden_states.dtype)


class RepAdapterLayer(VisualLayer):
    """A norm with linear adapters behind it, which merge into the linear layers that read its output."""

    adapter_layer_names = ("vis_repadapter_adapter",)

    def __init__(self, base_layer: nn.Module, followers: tuple[nn.Module, ...]):
        super().__init__(base_layer)
        self.followers = followers  # a tuple, so that they stay where they are registered
        self.vis_repadapter_adapter = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: RepAdapterConfig) -> None:
        self.vis_repadapter_adapter[adapter_name] = GroupedAdapter(num_features(self.get_base_layer()), config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The normed hidden states plus the update of each active adapter."""
        normed: torch.Tensor = self.forward_base(hidden_states)
        output = normed
        for name in self.adapters_in_use(self.vis_repadapter_adapter):
            output = output + self.vis_repadapter_adapter[name](normed)
        return output

    def _merged_values(self, adapter_name: str) -> NewValues:
        """W' = W (I + scale B A) and b' = b + scale W (B a + b_B) for each layer that reads the norm."""
        if self.merged:
            raise ValueError(f"RepAdapter merges one adapter at a time, and {self.merged_adapters} is merged already")
        adapter: Any = self.vis_repadapter_adapter[adapter_name]
        up = adapter.up_matrix().data
        matrix = adapter.scale * up @ adapter.down.weight.data
        vector = adapter.scale * (up @ adapter.down.bias.data + adapter.up.bias.data)
        values: NewValues = []
        for follower in self.followers:
            linear: Any = unwrap(follower)
            weight = linear.weight.data.to(matrix.dtype)
            shift = weight @ vector
            values.append((linear, "weight", weight + weight @ matrix))
            values.append((linear, "bias", shift if linear.bias is None else linear.bias.data + shift))
        return values

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        adapter: Any = self.vis_repadapter_adapter[adapter_name]
        for parameter in adapter.up.parameters():
            yield parameter, torch.zeros_like(parameter)


class RepAdapterModel(VisualTuner):
    """Puts a `RepAdapterLayer` around both norms of each block."""

    prefix = "vis_repadapter_"
    tuner_layer_cls = RepAdapterLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [name for block in blocks for name in block.norms]

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        followers: dict[str, tuple[str, ...]] = {}
        followers |= {block.ln1: (block.q, block.k, block.v) for block in self.structure.blocks}
        followers |= {block.ln2: block.fc1 for block in self.structure.blocks}
        if name not in followers:
            raise ValueError(f"expected target_modules that are norms of blocks, got {name}")
        return RepAdapterLayer(target, tuple(self.model.get_submodule(key) for key in followers[name]))
