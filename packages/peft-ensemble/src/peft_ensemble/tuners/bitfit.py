"""BitFit: train the biases that are there (Ben Zaken et al., arXiv 2106.10199)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call

from ..structure import Block, unwrap
from .base import NewValues, VisualConfig, VisualLayer, VisualTuner


@dataclass
class BitFitConfig(VisualConfig):
    """Configuration of BitFit: every bias of the backbone becomes trainable, from its pre-trained value.

    102,912 parameters on ViT-B/16: all norms, patch embedding, q, k, v, output projection, MLP. One adapter can be
    active at a time, since a bias has one value.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), BitFitConfig())
    >>> model.print_trainable_parameters()
    trainable params: 706 || all params: 24,676 || trainable%: 2.8611

    ```
    """

    name: ClassVar[str] = "vis_bitfit"


def choose_one(names: list[str], method: str) -> str | None:
    """The adapter in use, or None; several are an error."""
    if len(names) > 1:
        raise ValueError(
            f"{method} replaces parameters, so one adapter can be active at a time, got {names}; "
            "call `set_adapter` with one of them"
        )
    return names[0] if names else None


class BitFitLayer(VisualLayer):
    """A module whose bias is replaced."""

    adapter_layer_names = ("vis_bitfit_bias",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.vis_bitfit_bias = nn.ParameterDict()

    @property
    def base_bias(self) -> nn.Parameter:
        """The bias of the wrapped module."""
        bias: nn.Parameter = self.get_base_layer().bias  # type: ignore[assignment]
        return bias

    def _add_weights(self, adapter_name: str, config: BitFitConfig) -> None:
        self.vis_bitfit_bias[adapter_name] = nn.Parameter(self.base_bias.detach().clone())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the wrapped module with the trained bias."""
        name = choose_one(self.adapters_in_use(self.vis_bitfit_bias), "BitFit")
        if name is None:
            return self.forward_base(*args, **kwargs)
        bias = self.vis_bitfit_bias[name].to(self.base_bias.dtype)
        return functional_call(self.get_base_layer(), {"bias": bias}, args, kwargs)

    def _merged_values(self, adapter_name: str) -> NewValues:
        return [(self.get_base_layer(), "bias", self.vis_bitfit_bias[adapter_name].data.clone())]

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        yield self.vis_bitfit_bias[adapter_name], self.base_bias.data


class BitFitModel(VisualTuner):
    """Puts a `BitFitLayer` around every module of the backbone with a bias."""

    prefix = "vis_bitfit_"
    tuner_layer_cls: type[VisualLayer] = BitFitLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        return [name for name in self._all_names(config, blocks) if self._has_bias(name)]

    def _all_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        names = [name for block in blocks for name in (*block.norms, *block.linears)]
        structure = self.structure
        if self.adapts_patches(config):
            names += [structure.patch_embedding, *([structure.pre_norm] if structure.pre_norm else [])]
        return names + ([structure.final_norm] if structure.final_norm else [])

    def _has_bias(self, name: str) -> bool:
        return getattr(unwrap(self.model.get_submodule(name)), "bias", None) is not None

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        if not self._has_bias(name):
            raise ValueError(f"expected target_modules with a bias, but {name} ({type(target).__name__}) has none")
        return BitFitLayer(target)
