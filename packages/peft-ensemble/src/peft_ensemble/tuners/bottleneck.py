"""The bottleneck that AdaptFormer and the adapters of Houlsby and Pfeiffer share: Up(dropout(ReLU(Down(x))))."""

from collections.abc import Iterator

import torch
from torch import nn

from .base import project

NOT_LINEAR = (
    "{} cannot be merged: its bottleneck has a nonlinearity, so no weights of the model give the same output. "
    "Keep the adapter, or use SSF, FacT, RepAdapter, LoRA, BitFit or DiffFit, which merge exactly"
)


class Bottleneck(nn.Module):
    """scale * Up(dropout(ReLU(Down(x)))), both layers with bias.

    Args:
        hidden_size: width of input and output.
        bottleneck: width between.
        scale: factor of the output.
        dropout: rate behind the ReLU.
    """

    def __init__(self, hidden_size: int, bottleneck: int, scale: float, dropout: float):
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck, hidden_size)
        self.scale = scale
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The update to add, in the precision of the input."""
        hidden = torch.relu(project(self.down, hidden_states))
        update = project(self.up, self.dropout(hidden))
        return (self.scale * update).to(hidden_states.dtype)

    def identity_values(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """The parameters in which the output is linear, with zeros."""
        for parameter in self.up.parameters():
            yield parameter, torch.zeros_like(parameter)
