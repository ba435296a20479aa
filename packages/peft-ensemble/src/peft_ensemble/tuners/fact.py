"""FacT: one tensor of updates for all layers, factorised (Jie and Deng, arXiv 2212.03145)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..structure import Block
from .base import NewValues, ScaledConfig, VisualLayer, VisualTuner


@dataclass
class FacTConfig(ScaledConfig):
    """Configuration of FacT: dW = scale * V S U for q, k, v, the output projection and the MLP, U and V for all
    layers.

    `"tt"` has an S (r x r) for each square matrix: 2 D r + 144 r^2 parameters on ViT-B/16. `"tk"` makes each S from
    one core (r, r, r) and a vector of its own: 2 D r + r^3 + 144 r. An MLP layer k times as wide as the model counts
    as k square matrices. V starts at zero, so the model starts exactly as pre-trained. The shared factors lie in the
    first layer that is adapted.

    Args:
        r: rank.
        scale: factor of the update.
        decomposition: `"tt"` (tensor train) or `"tk"` (Tucker).
        dropout: rate before V, in [0, 1).

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    ...     image_size=32, patch_size=8)
    >>> model = get_peft_model(ViTForImageClassification(config), FacTConfig(r=4))
    >>> model.print_trainable_parameters()
    trainable params: 578 || all params: 24,548 || trainable%: 2.3546

    ```
    """

    name: ClassVar[str] = "vis_fact"
    width: ClassVar[str] = "r"

    r: int = 16
    scale: float = 1.0
    decomposition: Literal["tt", "tk"] = "tt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decomposition not in ("tt", "tk"):
            raise ValueError(f"decomposition must be 'tt' or 'tk', got {self.decomposition!r}")


class FacTLayer(VisualLayer):
    """A linear layer with an update in the shared factors.

    A layer with D inputs and k D outputs is k square matrices below each other; with k D inputs, beside each other.
    """

    adapter_layer_names = ("vis_fact_u", "vis_fact_v", "vis_fact_core", "vis_fact_sigma")
    other_param_names = ("scale", "holders", "vis_fact_dropout")

    def __init__(self, base_layer: nn.Linear, hidden_size: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.num_in, self.num_out = base_layer.in_features // hidden_size, base_layer.out_features // hidden_size
        self.scale: dict[str, float] = {}
        self.holders: dict[str, FacTLayer] = {}  # of the shared factors; a dict, so that they are registered once
        self.vis_fact_u = nn.ParameterDict()
        self.vis_fact_v = nn.ParameterDict()
        self.vis_fact_core = nn.ParameterDict()
        self.vis_fact_sigma = nn.ParameterDict()
        self.vis_fact_dropout = nn.ModuleDict()

    def _add_weights(self, adapter_name: str, config: FacTConfig) -> None:
        r, slices = config.r, self.num_in * self.num_out
        if self.holders[adapter_name] is self:
            self.vis_fact_u[adapter_name] = nn.Parameter(_uniform((r, self.hidden_size), 1 / sqrt(self.hidden_size)))
            self.vis_fact_v[adapter_name] = nn.Parameter(torch.zeros(self.hidden_size, r))
            if config.decomposition == "tk":
                core = nn.init.xavier_uniform_(torch.empty(r, r * r)).view(r, r, r)
                self.vis_fact_core[adapter_name] = nn.Parameter(core)
        if config.decomposition == "tt":
            sigma = _uniform((self.num_out, self.num_in, r, r), 1 / sqrt(r * self.num_in))
        else:
            sigma = nn.init.xavier_uniform_(torch.empty(r, slices))
        self.vis_fact_sigma[adapter_name] = nn.Parameter(sigma)
        self.vis_fact_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.scale[adapter_name] = config.scale

    def _sigma(self, name: str) -> torch.Tensor:
        """S of this layer, `(num_out, num_in, r, r)`."""
        sigma: torch.Tensor = self.vis_fact_sigma[name]
        holder = self.holders[name]
        if name not in holder.vis_fact_core:
            return sigma
        slices = torch.einsum("pqk,kc->cpq", holder.vis_fact_core[name], sigma)
        slices = slices.transpose(1, 2) if self.num_in > 1 else slices
        stacked: torch.Tensor = slices.reshape(self.num_out, self.num_in, *slices.shape[1:])
        return stacked

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output of the linear layer plus scale * V dropout(S U x) of each active adapter."""
        output: torch.Tensor = self.forward_base(hidden_states)
        for name in self.adapters_in_use(self.vis_fact_sigma):
            holder = self.holders[name]
            u, v = holder.vis_fact_u[name], holder.vis_fact_v[name]
            slices = hidden_states.to(u.dtype).unflatten(-1, (self.num_in, self.hidden_size))
            low = torch.einsum("...ir,oisr->...os", slices @ u.T, self._sigma(name))
            update = self.vis_fact_dropout[name](low) @ v.T  # (..., num_out, D)
            output = output + (self.scale[name] * update.flatten(-2)).to(output.dtype)
        return output

    def _merged_values(self, adapter_name: str) -> NewValues:
        base: Any = self.get_base_layer()
        holder = self.holders[adapter_name]
        u, v = holder.vis_fact_u[adapter_name].data, holder.vis_fact_v[adapter_name].data
        update = torch.einsum("ds,oisr,re->odie", v, self._sigma(adapter_name).data, u)
        update = self.scale[adapter_name] * update.reshape(base.weight.shape)
        return [(base, "weight", base.weight.data + update)]

    def _identity_values(self, adapter_name: str) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        if self.holders[adapter_name] is self:
            yield self.vis_fact_v[adapter_name], torch.zeros_like(self.vis_fact_v[adapter_name])


def _uniform(shape: tuple[int, ...], bound: float) -> torch.Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


class FacTModel(VisualTuner):
    """Puts a `FacTLayer` around every linear layer of each block."""

    prefix = "vis_fact_"
    tuner_layer_cls = FacTLayer

    def _target_names(self, config: FacTConfig, blocks: Sequence[Block]) -> list[str]:
        return [name for block in blocks for name in block.linears]

    def _create_layer(self, config: FacTConfig, target: nn.Module, name: str) -> FacTLayer:
        size = self.structure.hidden_size
        if not isinstance(target, nn.Linear) or target.in_features % size or target.out_features % size:
            raise ValueError(
                f"FacT expects linear layers with sizes that are multiples of the hidden size {size}, got {name} = "
                f"{target}; pass target_modules without it, for instance only the attention projections"
            )
        return FacTLayer(target, size)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        self._holder: list[FacTLayer] = []  # the first layer of the adapter that is being injected

    def _add_adapter(self, layer: Any, adapter_name: str, config: FacTConfig) -> None:
        self._holder = self._holder or [layer]
        layer.holders[adapter_name] = self._holder[0]
        super()._add_adapter(layer, adapter_name, config)
