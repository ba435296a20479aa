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

    `keys` and `values` have shape `(batch_size, num_key_value_heads, physical_length, head_dim)`; `positions`, once
    the prompt is compressed, has the shape of their first three axes and is -1 where a slot is empty because another
    prompt of the batch keeps more. Slots are in ascending order of position, empty ones first.
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
        self.awaits_attention = False
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

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
        if self.positions is not None:
            new = torch.arange(self.seq_length, self.seq_length + num_new, device=self.positions.device)
            self.positions = torch.cat([self.positions, new.int().expand(*self.positions.shape[:2], -1)], dim=-1)
        self.seq_length += num_new
        self.awaits_attention = True
        keys: Any = self.keys.view_as(self.keys)
        keys._meda_layer = self  # how the attention function finds its layer: the only object that reaches it
        return keys, self.values

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Writes behind the stored slots in place; a full buffer is replaced by one with an eighth to spare."""
        length, needed = self.physical_length, self.physical_length + key_states.shape[-2]
        if self._key_buffer is None or self._value_buffer is None or self._key_buffer.shape[-2] < needed:
            capacity = needed + min(256, max(16, needed // 8))
            self._key_buffer = self.keys.new_empty(*self.keys.shape[:2], capacity, self.keys.shape[-1])
            self._value_buffer = self.values.new_empty(*self.values.shape[:2], capacity, self.values.shape[-1])
            self._key_buffer[:, :, :length] = self.keys
            self._value_buffer[:, :, :length] = self.values
        self._key_buffer[:, :, length:needed] = key_states
        self._value_buffer[:, :, length:needed] = value_states
        self.keys, self.values = self._key_buffer[:, :, :needed], self._value_buffer[:, :, :needed]

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
        length = max(budgets)
        self.has_empty_slots = min(budgets) < length
        self.keys = torch.stack([_pad_left(keys, length, 0) for keys, _, _ in rows])
        self.values = torch.stack([_pad_left(values, length, 0) for _, values, _ in rows])
        self.positions = torch.stack([_pad_left(positions, length, -1) for _, _, positions in rows])
        self._key_buffer = self._value_buffer = None
        self.statistics = []

    def build_mask(self, attention_mask: Tensor | None, query_length: int) -> Tensor | None:
        """Returns the mask of this layer's slots, from the one that the model made for an uncompressed cache.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, 1, query_length, seq_length)`, *optional*):
                Boolean (sdpa) or additive (eager).
            query_length (`int`): number of new tokens.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_key_value_heads, query_length, physical_length)` of the same
            kind, or None if every query sees every slot.
        """
        if self.positions is None:
            return attention_mask
        if attention_mask is None and query_length == 1 and not self.has_empty_slots:
            return None
        positions = self.positions[:, :, None].expand(-1, -1, query_length, -1).long()  # (B, H, Q, L)
        if attention_mask is None:
            newest = torch.arange(self.seq_length - query_length, self.seq_length, device=positions.device)
            return (positions >= 0) & (positions <= newest[:, None])
        mask = attention_mask.expand(positions.shape[0], positions.shape[1], -1, -1)
        mask = mask.gather(-1, positions.clamp(min=0))
        if mask.dtype == torch.bool:
            mask = mask & (positions >= 0)
            return None if query_length == 1 and bool(mask.all()) else mask
        return mask.masked_fill(positions < 0, torch.finfo(mask.dtype).min)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens; only tokens that came after the compression can be removed."""
        if tokens_to_remove > 0:
            raise ValueError(f"Expected minus the number of tokens to remove, got {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        length = self.physical_length + tokens_to_remove
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]
        if self.positions is not None:
            self.positions = self.positions[:, :, :length]
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
