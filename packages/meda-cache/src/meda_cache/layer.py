"""One layer of the cache: what is stored, where it stood in the prompt, and the mask that follows from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from meda_cache.compression import CompressionConfig, PromptStatistics, compress_prompt, observe_prompt


@dataclass(frozen=True)
class Prompt:
    """Which tokens of the prompts are visual and which are tokens at all: `(batch_size, seq_len)`, bool."""

    visual_mask: Tensor
    token_mask: Tensor

    def __len__(self) -> int:
        return len(self.token_mask)

    @property
    def seq_length(self) -> int:
        """Number of tokens, padding included."""
        return self.token_mask.shape[1]

    def select(self, rows: Tensor) -> "Prompt":
        """Returns the given rows."""
        rows = rows.to(self.token_mask.device)
        return Prompt(self.visual_mask[rows], self.token_mask[rows])


class MedaLayer(DynamicLayer):
    """Keys and values of one full-attention layer, with the original position of every stored slot.

    `keys` and `values` have shape `(batch_size, num_key_value_heads, physical_length, head_dim)`. Once the prompt is
    compressed, `positions` of shape `(batch_size, num_key_value_heads, num_kept)` says where the first slots stood in
    it, in ascending order; the other slots are the tokens that came later. A prompt that keeps less than another one
    of the batch has empty slots in front, with position -1.
    """

    keys: Any  # a tensor once a token has come
    values: Any

    def __init__(self, config: CompressionConfig):
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Drops everything."""
        self.keys = self.values = None
        self.positions: Tensor | None = None
        self.is_initialized = False
        self.seq_length = 0
        self.has_empty_slots = False
        self.prompt: Prompt | None = None
        self.statistics: list[PromptStatistics] = []
        self.entropy_kinds: list[str | None] = []
        self.awaits_attention = False
        self._key_buffer: Any = None
        self._value_buffer: Any = None

    @property
    def physical_length(self) -> int:
        """Number of stored slots a head."""
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def get_seq_length(self) -> int:
        """Returns the number of tokens seen, evicted or not."""
        return self.seq_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the length and the offset of the mask that an uncompressed cache would need."""
        return self.seq_length + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values and returns all that are stored; the returned keys lead back to this layer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new = key_states.shape[-2]
        if self.seq_length == 0:
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        else:
            self._append(key_states, value_states)
        self.seq_length += num_new
        self.awaits_attention = True
        keys: Any = self.keys.view_as(self.keys)
        keys._meda_layer = self  # how the attention function finds its layer: the only object that reaches it
        return keys, self.values

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Writes behind the stored slots in place; a full buffer is replaced by one with an eighth to spare."""
        length, needed = self.physical_length, self.physical_length + key_states.shape[-2]
        buffer = self._key_buffer
        is_frozen = buffer is not None and buffer.is_inference() and not torch.is_inference_mode_enabled()
        if buffer is None or buffer.shape[-2] < needed or is_frozen:
            capacity = needed + min(256, max(16, needed // 8))
            self._key_buffer = self.keys.new_empty(*self.keys.shape[:2], capacity, self.keys.shape[-1])
            self._value_buffer = self.values.new_empty(*self.values.shape[:2], capacity, self.values.shape[-1])
            self._key_buffer[:, :, :length] = self.keys
            self._value_buffer[:, :, :length] = self.values
        self._key_buffer[:, :, length:needed] = key_states
        self._value_buffer[:, :, length:needed] = value_states
        self.keys, self.values = self._key_buffer[:, :, :needed], self._value_buffer[:, :, :needed]

    def count_allocated_bytes(self) -> int:
        """Returns the bytes of keys, values and positions, spare slots included."""
        tensors = [tensor for tensor in (self.keys, self.values, self.positions) if tensor is not None]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def observe(
        self, query_states: Tensor, key_states: Tensor, *, scaling: float | None, attention_mask: Tensor | None
    ) -> None:
        """Takes the statistics of every prompt of the batch, once; none are needed to keep everything."""
        prompt, self.prompt = self.prompt, None
        if prompt is None or self.config.keep_ratio == 1:
            return
        for row, index in enumerate(_iter_tokens(prompt, query_states.device)):
            visible = None
            if attention_mask is not None:
                visible = _as_bool(attention_mask[row if attention_mask.shape[0] > 1 else 0, 0])[index][:, index]
            self.statistics.append(
                observe_prompt(
                    query_states[row][:, index],
                    key_states[row][:, index],
                    prompt.visual_mask[row].to(index.device)[index],
                    self.config,
                    scaling=scaling,
                    visible=visible,
                )
            )

    def compress(self, prompt: Prompt, budgets: Sequence[int]) -> None:
        """Keeps `budgets[row]` tokens of every prompt."""
        rows = []
        for row, index in enumerate(_iter_tokens(prompt, self.keys.device)):
            keys, values, kept = compress_prompt(
                self.keys[row][:, index],
                self.values[row][:, index],
                prompt.visual_mask[row].to(index.device)[index],
                self.statistics[row],
                budgets[row],
                self.config,
            )
            rows.append((keys, values, index[kept].int()))
        self.entropy_kinds = [statistics.entropy_kind for statistics in self.statistics]
        length = max(budgets)
        self.has_empty_slots = min(budgets) < length
        self.keys = torch.stack([_pad_left(keys, length, 0) for keys, _, _ in rows])
        self.values = torch.stack([_pad_left(values, length, 0) for _, values, _ in rows])
        self.positions = torch.stack([_pad_left(positions, length, -1) for _, _, positions in rows])
        self._key_buffer = self._value_buffer = None
        self.statistics = []

    def build_mask(self, attention_mask: Tensor | None, query_length: int) -> Tensor | None:
        """Returns the mask of this layer's slots, from the one that the model made for an uncompressed cache.

        Kept tokens of the prompt are never padding and come before all queries: what was said of them when the prompt
        was compressed holds on, and only the columns of later tokens are taken from `attention_mask`.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, 1, query_length, seq_length)`, *optional*):
                Boolean (sdpa) or additive (eager).
            query_length (`int`): number of new tokens.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, query_length, physical_length)` of the same kind, or None if every
            query sees every slot.
        """
        if self.positions is None or (attention_mask is None and query_length == 1 and not self.has_empty_slots):
            return attention_mask
        is_kept = self.positions[:, :1, None] >= 0  # (B, 1, 1, K): all heads of a prompt keep as many
        is_kept = is_kept.expand(-1, -1, query_length, -1)
        num_new = self.physical_length - self.positions.shape[-1]
        if attention_mask is None:
            new = is_kept.new_ones(query_length, num_new).tril(num_new - query_length)
            return torch.cat([is_kept, new.expand(len(is_kept), 1, -1, -1)], dim=-1)
        new = attention_mask[..., attention_mask.shape[-1] - num_new :].expand(len(is_kept), 1, -1, -1)
        if attention_mask.dtype == torch.bool:
            return torch.cat([is_kept, new], dim=-1)
        lowest = torch.finfo(attention_mask.dtype).min
        return torch.cat([torch.zeros_like(is_kept, dtype=new.dtype).masked_fill(~is_kept, lowest), new], dim=-1)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens; only tokens that came after the compression can be removed."""
        if tokens_to_remove > 0:
            raise ValueError(f"Expected minus the number of tokens to remove, got {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        length = self.physical_length + tokens_to_remove
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]
        self.seq_length += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorders the batch for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch `repeats` times in place."""
        if self.is_initialized:
            rows = torch.arange(self.keys.shape[0], device=self.keys.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of the batch given by `indices`, in that order."""
        if self.is_initialized:
            indices = indices.to(self.keys.device)
            self.keys, self.values = self.keys[indices], self.values[indices]
            self._key_buffer = self._value_buffer = None
            if self.positions is not None:
                self.positions = self.positions[indices]
            if self.statistics:
                self.statistics = [self.statistics[row] for row in indices.tolist()]
            if self.entropy_kinds:
                self.entropy_kinds = [self.entropy_kinds[row] for row in indices.tolist()]


def _iter_tokens(prompt: Prompt, device: torch.device) -> Iterator[Tensor]:
    """Yields the indices of the tokens of each prompt, without padding."""
    for tokens in prompt.token_mask.to(device):
        yield tokens.nonzero().flatten()


def _as_bool(attention_mask: Tensor) -> Tensor:
    """Returns True where a boolean or additive mask lets a query see a key."""
    return (
        attention_mask
        if attention_mask.dtype == torch.bool
        else attention_mask > torch.finfo(attention_mask.dtype).min
    )


def _pad_left(states: Tensor, length: int, value: float) -> Tensor:
    """Returns `(num_heads, num_kept, ...)` filled up at the front to `(num_heads, length, ...)`."""
    missing = states.new_full((states.shape[0], length - states.shape[1], *states.shape[2:]), value)
    return torch.cat([missing, states], dim=1)
