"""Visual prompt tuning, shallow and deep (Jia et al., arXiv 2203.12119)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import nn

from ..structure import Block, VisionStructure
from .base import VisualConfig, VisualLayer, VisualTuner, check_rate, check_size


@dataclass
class VPTConfig(VisualConfig):
    """Configuration of VPT: trained tokens in front of the others, for all blocks (shallow) or new ones for each
    (deep).

    Prompts start uniform in +-sqrt(6 / (3 P^2 + D)). They are taken off again before the final norm, so that heads
    find their tokens where they expect them. Shallow: n D parameters; deep: n D for each block.

    Args:
        num_prompts: n, the number of prompts.
        deep: new prompts for each block, which go after it.
        dropout: rate on the prompts, in [0, 1).
        legacy_strip: shallow prompts go after the first block, as in the code released with the PEFT study; that is
            what depresses its numbers for VPT-shallow.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), VPTConfig(num_prompts=5, deep=True))
    >>> model.print_trainable_parameters()
    trainable params: 386 || all params: 24,356 || trainable%: 1.5848

    ```
    """

    name: ClassVar[str] = "vis_vpt"

    num_prompts: int = 10
    deep: bool = False
    dropout: float = 0.1
    legacy_strip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("num_prompts", self.num_prompts)
        check_rate("dropout", self.dropout)
        if self.deep and self.legacy_strip:
            raise ValueError("legacy_strip is about shallow prompts; set deep=False or legacy_strip=False")


class VPTLayer(VisualLayer):
    """A block that puts prompts in front of its tokens, takes prompts off its output, or both.

    Which block does what follows from the config of each adapter: deep prompts come and go with every block, shallow
    ones come with the first and go with the last.
    """

    why_not_mergeable = "VPT cannot be merged: prompts are tokens, not a change of weights. Keep the adapter"
    adapter_layer_names = ("vis_vpt_prompts",)
    other_param_names = ("added", "removed", "vis_vpt_dropout")

    def __init__(self, base_layer: nn.Module, number: int, hidden_size: int, patch_numbers: int):
        super().__init__(base_layer)
        self.number = number
        self.hidden_size = hidden_size
        self.bound = sqrt(6 / (patch_numbers + hidden_size))
        self.added: dict[str, int] = {}
        self.removed: dict[str, int] = {}
        self.vis_vpt_prompts = nn.ParameterDict()
        self.vis_vpt_dropout = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: VPTConfig, last: int = 0, first: int = 0) -> None:
        adds = config.deep or self.number == first
        removes = config.deep or self.number == (first if config.legacy_strip else last)
        self.added[adapter_name] = config.num_prompts if adds else 0
        self.removed[adapter_name] = config.num_prompts if removes else 0
        if adds:
            prompts = torch.empty(config.num_prompts, self.hidden_size).uniform_(-self.bound, self.bound)
            self.vis_vpt_prompts[adapter_name] = nn.Parameter(prompts)
        self.vis_vpt_dropout[adapter_name] = nn.Dropout(config.dropout)

    def update_layer(self, adapter_name: str, config: VPTConfig, first: int = 0, last: int = 0) -> None:
        """Add an adapter, given the first and the last block that it prompts."""
        self._add_weights(adapter_name, config, first=first, last=last)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The block on prompts and tokens."""
        names = self.adapters_in_use(self.vis_vpt_dropout)
        if names and any(torch.is_tensor(mask) for mask in (*args, kwargs.get("attention_mask"))):
            raise ValueError("VPT expects no attention_mask: a vision model attends to all tokens; leave it out")
        prompts = [self._prompts(name, hidden_states) for name in reversed(names) if self.added[name]]
        output = self.base_layer(torch.cat([*prompts, hidden_states], dim=1), *args, **kwargs)
        return output[:, sum(self.removed[name] for name in names) :]

    def _prompts(self, name: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """One adapter's prompts, for each image."""
        prompts = self.vis_vpt_prompts[name].to(hidden_states.dtype)
        return self.vis_vpt_dropout[name](prompts.expand(hidden_states.shape[0], -1, -1))  # type: ignore[no-any-return]

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        raise ValueError(
            "VPT has no path in weight space: a prompt of zeros still takes part in attention. "
            "Mix the outputs of base and tuned model instead: `mix_outputs(model, alpha)`"
        )


class VPTModel(VisualTuner):
    """Puts a `VPTLayer` around the blocks."""

    prefix = "vis_vpt_"
    tuner_layer_cls = VPTLayer
    structure: VisionStructure

    def _target_names(self, config: VPTConfig, blocks: Sequence[Block]) -> list[str]:
        if config.deep:
            return [block.block for block in blocks]
        return sorted({blocks[0].block, blocks[0 if config.legacy_strip else -1].block})

    def _create_layer(self, config: VPTConfig, target: nn.Module, name: str) -> VPTLayer:
        numbers = {block.block: number for number, block in enumerate(self.structure.blocks)}
        if name not in numbers:
            raise ValueError(f"expected target_modules that are blocks, such as {next(iter(numbers))}, got {name}")
        patch: Any = self.model.get_submodule(self.structure.patch_embedding)
        patch_numbers = patch.in_channels * patch.kernel_size[0] * patch.kernel_size[1]
        return VPTLayer(target, numbers[name], self.structure.hidden_size, patch_numbers)

    def _add_adapter(self, layer: Any, adapter_name: str, config: VPTConfig) -> None:
        chosen = config.blocks or range(len(self.structure.blocks))
        layer.update_layer(adapter_name, config, first=min(chosen), last=max(chosen))
