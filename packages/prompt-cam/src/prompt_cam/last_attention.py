"""The attention of the last layer, piece by piece, as its own modules compute it."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prompt_cam.hooks import LayerInput


class AttentionParts:
    """The pieces of a layer's attention, as its own modules compute them."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.norm = next(module for module in layer.children() if isinstance(module, nn.LayerNorm))
        self.attention: Any = next(module for module in layer.children() if hasattr(module, "q_proj"))
        self.output: nn.Module = getattr(self.attention, "o_proj", None) or self.attention.out_proj
        self.num_heads: int = getattr(self.attention, "num_heads", None) or self.attention.num_attention_heads
        self.scaling: float = getattr(self.attention, "scaling", None) or self.attention.scale

    def attend(self, given: LayerInput, rows: torch.Tensor) -> torch.Tensor:
        """Returns the attention of some prompts, after the softmax: `(batch_size, num_heads, num_rows, seq_len)`.

        Args:
            given (`LayerInput`): the input of the layer, prompts in front.
            rows (`torch.Tensor` of shape `(batch_size, num_rows)`): which prompts.
        """
        x = self.norm(given.hidden_states)
        chosen = torch.gather(x, 1, rows[..., None].expand(-1, -1, x.shape[2]))
        queries = self._split(self.attention.q_proj(chosen))  # prompts stand before the patches: no RoPE
        keys = self._split(self.attention.k_proj(x))
        if given.position_embeddings is not None:
            rotate = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb
            keys = rotate(keys, keys, *given.position_embeddings)[1]
        # In float32, scaled first: in half precision the products of long queries and keys overflow.
        scores = (queries.float() * self.scaling) @ keys.float().transpose(-1, -2)
        if given.attention_mask is not None:
            visible = _visible_keys(given.attention_mask)  # (batch_size, seq_len)
            scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)

    def values(self, given: LayerInput) -> torch.Tensor:
        """Returns the values of all tokens, `(batch_size, num_heads, seq_len, head_dim)`."""
        values: torch.Tensor = self.attention.v_proj(self.norm(given.hidden_states))
        return self._split(values)

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = projected.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)

    def run_tail(self, tokens: torch.Tensor, heads: torch.Tensor, given: LayerInput) -> torch.Tensor:
        """Returns tokens after the layer, had its attention given `heads`.

        The layer itself runs, on sequences of a single token, while a hook swaps the input of the projection that
        joins the heads; so residuals, layer scales, norms and MLP are its own.

        Args:
            tokens (`torch.Tensor` of shape `(num_tokens, hidden_size)`): before the layer.
            heads (`torch.Tensor` of shape `(num_tokens, num_heads, head_dim)`): what attention gives each of them.
            given (`LayerInput`): the input of the layer that they are from.
        """
        joined = heads.flatten(1)[:, None]
        extra: dict[str, Any] = {}
        if given.position_embeddings is not None:  # a prompt is no patch: nothing to rotate
            extra["position_embeddings"] = tuple(part[..., :0, :] for part in given.position_embeddings)
        with swapped_input(self.output, joined):
            out: torch.Tensor = self.layer(tokens[:, None], attention_mask=None, **extra)
        return out[:, 0]


def _visible_keys(mask: torch.Tensor) -> torch.Tensor:
    """Returns which keys the first token sees, for images padded to one length; `(batch_size, seq_len)`."""
    row = mask[:, 0, 0] if mask.ndim == 4 else mask
    return row >= 0 if row.is_floating_point() else row.bool()


@contextmanager
def swapped_input(module: nn.Module, value: torch.Tensor) -> Iterator[None]:
    """Gives a module another input in the calls of this thread while the context lasts."""
    thread = threading.get_ident()

    def swap(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (value.to(args[0].dtype),) if threading.get_ident() == thread else None

    handle = module.register_forward_pre_hook(swap)
    try:
        yield
    finally:
        handle.remove()
