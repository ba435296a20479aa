"""SSF: scale and shift the output of every operation (Lian et al., arXiv 2210.08823)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..structure import Block
from .base import NewValues, VisualConfig, VisualLayer, VisualTuner, num_features


@dataclass
class SSFConfig(VisualConfig):
    """Configuration of SSF: y becomes s * y + t after each operation, with `s ~ N(1, 0.02)` and `t ~ N(0, 0.02)`.

    Wrapped are the patch embedding, the final norm, and in each block both norms, q, k, v, the output projection and
    the MLP layers: 205,824 parameters on ViT-B/16. It starts close to the pre-trained model, not exactly there.

    Args:
        init_std: standard deviation of both draws.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), SSFConfig())
    >>> model.print_trainable_parameters()
    trainable params: 1,346 || all params: 25,316 || trainable%: 5.3168

    ```
    """

    name: ClassVar[str] = "vis_ssf"

    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_std < 0:
            raise ValueError(f"init_std must be at least 0, got {self.init_std}")


class SSFLayer(VisualLayer):
    """A Linear, Conv2d or norm whose output is scaled and shifted in each channel."""

    adapter_layer_names = ("vis_ssf_scale", "vis_ssf_shift")

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.vis_ssf_scale = nn.ParameterDict()
        self.vis_ssf_shift = nn.ParameterDict()

    def _add_weights(self, adapter_name: str, config: SSFConfig) -> None:
        size = num_features(self.get_base_layer())
        self.vis_ssf_scale[adapter_name] = nn.Parameter(torch.empty(size).normal_(1, config.init_std))
        self.vis_ssf_shift[adapter_name] = nn.Parameter(torch.empty(size).normal_(0, config.init_std))

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of the wrapped module, scaled and shifted by each active adapter in turn."""
        output: torch.Tensor = self.forward_base(*args, **kwargs)
        dtype = output.dtype
        for name in self.adapters_in_use(self.vis_ssf_scale):
            scale, shift = self.vis_ssf_scale[name], self.vis_ssf_shift[name]
            shape = (-1, 1, 1) if isinstance(self.get_base_layer(), nn.Conv2d) else (-1,)
            output = output * scale.view(shape) + shift.view(shape)
        return output.to(dtype)

    def _merged_values(self, adapter_name: str) -> NewValues:
        base: Any = self.get_base_layer()
        scale, shift = self.vis_ssf_scale[adapter_name].data, self.vis_ssf_shift[adapter_name].data
        weight = base.weight.data * scale.view(-1, *[1] * (base.weight.dim() - 1))
        bias = shift if base.bias is None else base.bias.data * scale + shift
        return [(base, "weight", weight), (base, "bias", bias)]

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        scale, shift = self.vis_ssf_scale[adapter_name], self.vis_ssf_shift[adapter_name]
        yield scale, torch.ones_like(scale)
        yield shift, torch.zeros_like(shift)


class SSFModel(VisualTuner):
    """Puts an `SSFLayer` around every operation of the backbone."""

    prefix = "vis_ssf_"
    tuner_layer_cls = SSFLayer

    def _target_names(self, config: SSFConfig, blocks: Sequence[Block]) -> list[str]:
        names = [name for block in blocks for name in (*block.norms, *block.linears)]
        if self.adapts_patches(config):
            names.append(self.structure.patch_embedding)
        return names + ([self.structure.final_norm] if self.structure.final_norm else [])

    def _create_layer(self, config: SSFConfig, target: nn.Module, name: str) -> SSFLayer:
        return SSFLayer(target)
