"""ConvPass: a small convolution over the patches beside each branch (Jie and Deng, arXiv 2207.07039)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..structure import Block
from .base import ScaledConfig, VisualLayer, VisualTuner, project


@dataclass
class ConvPassConfig(ScaledConfig):
    """Configuration of ConvPass: branch(h) + scale * Up(dropout(g(Conv3x3(g(Down h))))), g the quick GELU, h normed.

    Beside attention and MLP. The convolution runs over the grid of patches; every other token (CLS, registers) is an
    image of one pixel. Up starts at zero, so the model starts exactly as pre-trained. 327,552 parameters on ViT-B/16
    with a bottleneck of 8.

    Args:
        bottleneck: width between Down and Up.
        scale: factor of the adapter's output.
        dropout: rate before Up, in [0, 1).
        init: the convolution starts as the identity, or xavier-uniform.
        grid_size: rows and columns of patches. By default the grid of the model's configured image size, or a square;
            to be given for other images that are not square.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), ConvPassConfig(bottleneck=4))
    >>> model.print_trainable_parameters()
    trainable params: 1,826 || all params: 25,796 || trainable%: 7.0786

    ```
    """

    name: ClassVar[str] = "vis_convpass"

    bottleneck: int = 8
    init: Literal["identity", "xavier"] = "identity"
    grid_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("identity", "xavier"):
            raise ValueError(f"init must be 'identity' or 'xavier', got {self.init!r}")


def quick_gelu(hidden: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x)."""
    return hidden * torch.sigmoid(1.702 * hidden)


class ConvPassAdapter(nn.Module):
    """scale * Up(dropout(g(Conv3x3(g(Down h))))) for tokens whose last ones are a grid of patches."""

    def __init__(self, hidden_size: int, config: ConvPassConfig):
        super().__init__()
        self.down = nn.Linear(hidden_size, config.bottleneck)
        self.conv = nn.Conv2d(config.bottleneck, config.bottleneck, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.bottleneck, hidden_size)
        self.scale = config.scale
        nn.init.xavier_uniform_(self.down.weight)
        if config.init == "identity":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The update to add: hidden states `(batch_size, seq_len, hidden_size)`, in their precision."""
        hidden = quick_gelu(project(self.down, hidden_states))  # (B, N, r)
        num_patches = grid[0] * grid[1]
        prefix, patches = hidden.split([hidden.shape[1] - num_patches, num_patches], dim=1)
        image = patches.transpose(1, 2).reshape(patches.shape[0], -1, *grid)  # (B, r, rows, columns)
        patches = self.conv(image).flatten(2).transpose(1, 2)
        # On one pixel with zeros around it, a 3x3 convolution is its central weight.
        prefix = nn.functional.linear(prefix, self.conv.weight[:, :, 1, 1], self.conv.bias)
        hidden = self.dropout(quick_gelu(torch.cat([prefix, patches], dim=1)))
        return (self.scale * project(self.up, hidden)).to(hidden_states.dtype)


class ConvPassLayer(VisualLayer):
    """An attention module or MLP with convolutions beside it."""

    why_not_mergeable = (
        "ConvPass cannot be merged: it convolves over neighbouring patches and is nonlinear. Keep the adapter"
    )
    adapter_layer_names = ("vis_convpass_adapter",)

    def __init__(self, base_layer: nn.Module, hidden_size: int, num_prefix_tokens: int, grid: tuple[int, int]):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.num_prefix_tokens = num_prefix_tokens
        self.grid = grid
        self.vis_convpass_adapter = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: ConvPassConfig) -> None:
        self.vis_convpass_adapter[adapter_name] = ConvPassAdapter(self.hidden_size, config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the branch plus the update of each active adapter; attention weights, if any, as they are."""
        output = self.forward_base(*args, **kwargs)
        hidden_states = args[0] if args else kwargs["hidden_states"]
        names = self.adapters_in_use(self.vis_convpass_adapter)
        if not names:
            return output
        grid = self._grid_of(hidden_states.shape[1])
        update = sum(self.vis_convpass_adapter[name](hidden_states, grid) for name in names)
        return (output[0] + update, *output[1:]) if isinstance(output, tuple) else output + update

    def _grid_of(self, seq_len: int) -> tuple[int, int]:
        """Rows and columns of the patches among so many tokens."""
        num_patches = seq_len - self.num_prefix_tokens
        if num_patches == self.grid[0] * self.grid[1]:
            return self.grid
        side = isqrt(max(num_patches, 0))
        if side * side != num_patches or side == 0:
            raise ValueError(
                f"expected {self.grid[0]} x {self.grid[1]} patches or a square of them, and "
                f"{self.num_prefix_tokens} other tokens, got {seq_len} tokens in all; "
                "pass grid_size=(rows, columns) to ConvPassConfig"
            )
        return side, side

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        adapter: Any = self.vis_convpass_adapter[adapter_name]
        for parameter in adapter.up.parameters():
            yield parameter, torch.zeros_like(parameter)


class ConvPassModel(VisualTuner):
    """Puts a `ConvPassLayer` around the attention and the MLP of each block."""

    prefix = "vis_convpass_"
    tuner_layer_cls = ConvPassLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [name for block in blocks for name in (block.attention, block.mlp)]

    def _create_layer(self, config: ConvPassConfig, target: nn.Module, name: str) -> VisualLayer:
        structure = self.structure
        grid = tuple(config.grid_size) if config.grid_size else structure.grid
        return ConvPassLayer(target, structure.hidden_size, structure.num_prefix_tokens, grid)  # type: ignore[arg-type]
