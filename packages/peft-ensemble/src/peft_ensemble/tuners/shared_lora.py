"""LoRA as in the PEFT study: one update of q, k and v with one A for the three (Hu et al., arXiv 2106.09685)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import nn

from ..structure import Block, is_norm, unwrap
from .base import NewValues, ScaledConfig, VisualLayer, VisualTuner, num_features, project


@dataclass
class SharedLoraConfig(ScaledConfig):
    """Configuration of joint-qkv LoRA: [dq, dk, dv] = scale * B A dropout(h), A shared, as on a fused qkv layer.

    peft's own LoRA has an A for each of the three (4,608 r parameters a block on ViT-B/16; here 3,072 r). A is
    kaiming-uniform, B starts at zero.

    Args:
        r: rank.
        scale: factor of the update; 1 in the study (no alpha / r).
        dropout: rate before A, in [0, 1).

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), SharedLoraConfig(r=4))
    >>> model.print_trainable_parameters()
    trainable params: 1,090 || all params: 25,060 || trainable%: 4.3496

    ```
    """

    name: ClassVar[str] = "vis_shared_lora"
    width: ClassVar[str] = "r"

    r: int = 8
    scale: float = 1.0


class SharedLoraDown(VisualLayer):
    """The norm before attention: hands on A dropout(h) beside h, so that it is computed, and dropped, once."""

    adapter_layer_names = ("vis_shared_lora_A",)
    other_param_names = ("vis_shared_lora_dropout",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.vis_shared_lora_A = nn.ModuleDict()
        self.vis_shared_lora_dropout = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: SharedLoraConfig) -> None:
        down = nn.Linear(num_features(self.get_base_layer()), config.r, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=sqrt(5))
        self.vis_shared_lora_A[adapter_name] = down
        self.vis_shared_lora_dropout[adapter_name] = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normed hidden states and behind them the low-rank ones of each active adapter."""
        normed: torch.Tensor = self.forward_base(hidden_states)
        parts = [normed]
        for name in self.adapters_in_use(self.vis_shared_lora_A):
            down: Any = self.vis_shared_lora_A[name]
            parts.append(project(down, self.vis_shared_lora_dropout[name](normed)).to(normed.dtype))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else normed

    def _merged_values(self, adapter_name: str) -> NewValues:
        return []

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        return iter(())


class SharedLoraUp(VisualLayer):
    """q, k or v behind a `SharedLoraDown`."""

    adapter_layer_names = ("vis_shared_lora_B",)
    other_param_names = ("scale",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self._down: tuple[SharedLoraDown, ...] = ()  # a tuple, so that it stays where it is registered
        self.scale: dict[str, float] = {}
        self.vis_shared_lora_B = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: SharedLoraConfig) -> None:
        up = nn.Linear(config.r, num_features(self.get_base_layer()), bias=False)
        nn.init.zeros_(up.weight)
        self.vis_shared_lora_B[adapter_name] = up
        self.scale[adapter_name] = config.scale

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The projection plus scale * B z of each active adapter, z as the norm has handed it on."""
        base: Any = self.get_base_layer()
        names = self.adapters_in_use(self.vis_shared_lora_B)
        ups: list[Any] = [self.vis_shared_lora_B[name] for name in names]
        normed, *lows = hidden_states.split([base.in_features, *(up.in_features for up in ups)], dim=-1)
        output: torch.Tensor = self.forward_base(normed)
        for name, up, low in zip(names, ups, lows, strict=True):
            output = output + (self.scale[name] * project(up, low)).to(output.dtype)
        return output

    def _merged_values(self, adapter_name: str) -> NewValues:
        base: Any = self.get_base_layer()
        down: Any = self._down[0].vis_shared_lora_A[adapter_name]
        up: Any = self.vis_shared_lora_B[adapter_name]
        update = up.weight.data @ down.weight.data
        return [(base, "weight", base.weight.data + self.scale[adapter_name] * update)]

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        up: Any = self.vis_shared_lora_B[adapter_name]
        yield up.weight, torch.zeros_like(up.weight)


class SharedLoraModel(VisualTuner):
    """Puts a `SharedLoraDown` around the first norm of each block, and a `SharedLoraUp` around its q, k and v."""

    prefix = "vis_shared_lora_"
    tuner_layer_cls = VisualLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [name for block in blocks for name in (block.ln1, block.q, block.k, block.v)]

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        return SharedLoraDown(target) if is_norm(unwrap(target)) else SharedLoraUp(target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, and let q, k and v know the norm that feeds them."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for block in self.structure.blocks:
            down, *ups = (model.get_submodule(name) for name in (block.ln1, block.q, block.k, block.v))
            for up in ups:
                if isinstance(up, SharedLoraUp) != isinstance(down, SharedLoraDown):
                    raise ValueError(
                        f"expected all or none of the first norm, q, k and v of {block.block} among target_modules; "
                        "leave target_modules out to have them found"
                    )
                if isinstance(up, SharedLoraUp) and isinstance(down, SharedLoraDown):
                    up._down = (down,)
