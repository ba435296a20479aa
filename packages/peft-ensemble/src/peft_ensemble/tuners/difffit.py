"""DiffFit: biases, norms and a scale for each branch (Xie et al., arXiv 2304.06648)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call

from ..structure import Block, is_norm
from .base import NewValues, VisualConfig, VisualLayer
from .bitfit import BitFitModel, choose_one


@dataclass
class DiffFitConfig(VisualConfig):
    """Configuration of DiffFit: all biases and norms are trained, and each branch is scaled: x + gamma * branch(x).

    140,544 parameters on ViT-B/16. gamma starts at one, everything else at its pre-trained value. gamma acts on the
    output of the branch's last linear layer, which is the same as on the branch: LayerScale and drop-path behind it
    are products too. One adapter can be active at a time.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), DiffFitConfig())
    >>> model.print_trainable_parameters()
    trainable params: 994 || all params: 24,964 || trainable%: 3.9817

    ```
    """

    name: ClassVar[str] = "vis_difffit"


class DiffFitLayer(VisualLayer):
    """A module with a trained bias, a trained weight if it is a norm, and a scale if it ends a branch."""

    adapter_layer_names = ("vis_difffit_bias", "vis_difffit_weight", "vis_difffit_gamma")

    def __init__(self, base_layer: nn.Module, ends_branch: bool):
        super().__init__(base_layer)
        self.ends_branch = ends_branch
        self.vis_difffit_bias = nn.ParameterDict()
        self.vis_difffit_weight = nn.ParameterDict()
        self.vis_difffit_gamma = nn.ParameterDict()

    def _add_weights(self, adapter_name: str, config: DiffFitConfig) -> None:
        base: Any = self.get_base_layer()
        if getattr(base, "bias", None) is not None:
            self.vis_difffit_bias[adapter_name] = nn.Parameter(base.bias.detach().clone())
        if is_norm(base):
            self.vis_difffit_weight[adapter_name] = nn.Parameter(base.weight.detach().clone())
        if self.ends_branch:
            self.vis_difffit_gamma[adapter_name] = nn.Parameter(torch.ones(base.weight.shape[0]))

    def _parts(self, adapter_name: str) -> dict[str, nn.Parameter]:
        """The weights of one adapter: bias, weight, gamma, as far as this layer has them."""
        containers = {"bias": self.vis_difffit_bias, "weight": self.vis_difffit_weight}
        containers["gamma"] = self.vis_difffit_gamma
        return {key: part[adapter_name] for key, part in containers.items() if adapter_name in part}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the wrapped module with the trained parameters, times gamma."""
        weights = (self.vis_difffit_bias, self.vis_difffit_weight, self.vis_difffit_gamma)
        name = choose_one(self.adapters_in_use(*weights), "DiffFit")
        if name is None:
            return self.forward_base(*args, **kwargs)
        parts = self._parts(name)
        gamma = parts.pop("gamma", None)
        base: Any = self.get_base_layer()
        values = {key: value.to(base.weight.dtype) for key, value in parts.items()}
        output = functional_call(base, values, args, kwargs)
        return output if gamma is None else output * gamma.to(output.dtype)

    def _merged_values(self, adapter_name: str) -> NewValues:
        base: Any = self.get_base_layer()
        parts = self._parts(adapter_name)
        gamma = parts.pop("gamma", None)
        values = {key: value.data.clone() for key, value in parts.items()}
        if gamma is not None:
            values["weight"] = base.weight.data * gamma.data[:, None]
            if "bias" in values:
                values["bias"] = values["bias"] * gamma.data
        return [(base, key, value) for key, value in values.items()]

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        base: Any = self.get_base_layer()
        for key, value in self._parts(adapter_name).items():
            yield value, torch.ones_like(value) if key == "gamma" else getattr(base, key).data


class DiffFitModel(BitFitModel):
    """Puts a `DiffFitLayer` around every module of the backbone that has a bias, is a norm, or ends a branch."""

    prefix = "vis_difffit_"
    tuner_layer_cls = DiffFitLayer

    def _target_names(self, config: Any, blocks: Sequence[Block]) -> list[str]:
        kept = {name for block in blocks for name in (*block.norms, block.o, block.fc2)} | {
            *self.structure.outer_norms()
        }
        return [name for name in self._all_names(config, blocks) if name in kept or self._has_bias(name)]

    def _create_layer(self, config: Any, target: nn.Module, name: str) -> VisualLayer:
        return DiffFitLayer(target, any(name in (block.o, block.fc2) for block in self.structure.blocks))
