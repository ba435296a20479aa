"""One layer of the cache: what is stored, where it stood in the prompt, and the mask that follows from it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from meda_cache.compression import CompressionConfig
from meda_cache.observation import PromptObserver
from meda_cache.policy import Rotation, merge_slots, select_slots
from meda_cache.prompt import Prompt, to_index
from meda_cache.reading import Reading
from meda_cache.upstream import RotaryFunction, build_rotation


class MedaLayer(DynamicLayer):
    """Keys and values of one full-attention layer, with the original position of every stored slot.

    `keys` and `values` have shape `(batch_size, num_key_value_heads, physical_length, head_dim)`. Once the prompt is
    compressed, `positions` of shape `(batch_size, num_key_value_heads, num_kept)` says where the first slots stood in
    it, in ascending order; the other slots are the tokens that came later. A prompt that keeps less than another one
    of the batch has empty slots in front, with position -1: `start` `(batch_size,)` is the first that is not empty,
    and `is_kept` `(batch_size, 1, 1, num_kept)` says which are not; both are None where no slot is empty. Decoding
    looks at none of these from the host: a GPU never waits for it.
    """

    keys: Any  # a tensor once a token has come
    values: Any

    def __init__(self, config: CompressionConfig, layer_idx: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.layer_idx = layer_idx
        self.reset()

    def reset(self) -> None:
        """Drops everything."""
        self.keys = self.values = None
        self.positions: Tensor | None = None
        self.start: Tensor | None = None
        self.is_kept: Tensor | None = None
        self.is_initialized = False
        self.logical_length = 0  # tokens seen, evicted or not
        self.compressed_length = 0  # those of them that were the prompt when it was compressed, padding included
        self.expected_length = 0
        self.reading: Reading | None = None
        self.hides_later = True  # whether a mask may hide tokens behind the compressed ones
        self.observers: list[PromptObserver] = []
        self.rotary: list[tuple[Tensor, ...]] = []  # cosines and sines of each forward of the prompt
        self.rotary_function: RotaryFunction | None = None
        self.awaits_attention = False
        self._key_buffer: Any = None
        self._value_buffer: Any = None

    @property
    def physical_length(self) -> int:
        """Number of stored slots a head."""
        return 0 if self.keys is None else int(self.keys.shape[-2])

    @property
    def num_kept(self) -> int:
        """Number of slots that come from a compression, empty ones included."""
        return 0 if self.positions is None else self.positions.shape[-1]

    def get_seq_length(self) -> int:
        """Returns the number of tokens seen, evicted or not."""
        return self.logical_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the length and the offset of the mask that an uncompressed cache would need."""
        return self.logical_length + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values and returns all that are stored; the returned keys lead back to this layer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new = key_states.shape[-2]
        if self.logical_length == 0 and num_new >= self.expected_length:
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        else:
            self._append(key_states, value_states)
        self.logical_length += num_new
        self.awaits_attention = True
        keys: Any = self.keys.view_as(self.keys)
        keys._meda_layer = self  # how the attention function finds its layer: the only object that reaches it
        return keys, self.values

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Writes behind the stored slots in place; a full buffer is replaced by one with an eighth to spare."""
        num_new = key_states.shape[-2]
        length = self.physical_length if self.logical_length else 0
        needed, buffer = length + num_new, self._key_buffer
        is_frozen = buffer is not None and buffer.is_inference() and not torch.is_inference_mode_enabled()
        if buffer is None or buffer.shape[-2] < needed or is_frozen:
            to_come = max(0, self.expected_length - self.logical_length - num_new)
            capacity = needed + to_come + min(256, max(16, needed // 8))
            self._key_buffer, self._value_buffer = (
                new.new_empty(*new.shape[:2], capacity, new.shape[-1]) for new in (key_states, value_states)
            )
            if length:
                self._key_buffer[:, :, :length] = self.keys
                self._value_buffer[:, :, :length] = self.values
        self._key_buffer[:, :, length:needed] = key_states
        self._value_buffer[:, :, length:needed] = value_states
        self.keys, self.values = self._key_buffer[:, :, :needed], self._value_buffer[:, :, :needed]

    def count_allocated_bytes(self) -> int:
        """Returns the bytes of keys, values and positions, spare slots included."""
        tensors = [tensor for tensor in (self.keys, self.values, self.positions) if tensor is not None]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def get_slots(self, row: int, prompt: Prompt) -> tuple[slice | Tensor, Tensor]:
        """Returns the slots of a prompt, and their positions in it `(num_key_value_heads, num_slots)`."""
        num_heads = self.keys.shape[1]
        tokens = torch.arange(prompt.length)[prompt.token_index[row]]
        if self.positions is None:
            return prompt.token_index[row], tokens.to(self.device).expand(num_heads, -1)
        first = 0 if self.start is None else int(self.start[row])
        later = tokens[tokens >= self.compressed_length]
        slots = torch.cat([torch.arange(first, self.num_kept), later - self.compressed_length + self.num_kept])
        positions = [self.positions[row][:, first:].long(), later.to(self.device).expand(num_heads, -1)]
        return to_index(slots), torch.cat(positions, dim=1)

    def observe(
        self,
        query_states: Tensor,
        key_states: Tensor,
        *,
        scaling: float | None,
        attention_mask: Tensor | None,
        lse: Tensor | None = None,
    ) -> None:
        """Takes the statistics of every prompt of the batch from queries and keys of the forward that is under way.

        `lse` `(batch_size, num_heads, num_queries)` is what the attention op knows of its rows, where it says so.
        """
        reading, self.reading = self.reading, None
        if reading is None:
            return
        prompt, device = reading.prompt, key_states.device
        self.observers = self.observers or [PromptObserver(self.config) for _ in range(len(prompt))]
        is_later = self.positions is not None  # a later turn: the layers' entropies stay those of the first prompt
        for row, part in enumerate(reading.split(None if is_later else attention_mask)):
            if part is None:
                continue
            tokens = self.get_slots(row, prompt)[0] if is_later else part.tokens
            states = query_states[row][:, part.queries], key_states[row][:, tokens]
            if is_later:
                self.observers[row].observe_keys(*states, scaling=scaling)
                continue
            self.observers[row].observe(
                *states,
                part.visual_mask.to(device),
                scaling=scaling,
                visible=None if part.visible is None else part.visible.to(device),
                lse=None if lse is None else lse[row][:, part.queries],
                has_both=prompt.has_both[row],
                is_whole=reading.is_whole,
            )

    def complete(self, prompt: Prompt) -> list[Tensor | None]:
        """Returns the entropy of every prompt, once it has been read."""
        if self.positions is None:
            for row, observer in enumerate(self.observers):
                tokens = prompt.token_index[row]
                visual_mask = prompt.visual_mask[row][tokens].to(self.device)
                keys = self.keys[row][:, tokens].to(self.device)
                observer.complete(keys, visual_mask, has_both=prompt.has_both[row])
        return [observer.entropy for observer in self.observers]

    def count_slots(self, row: int, prompt: Prompt) -> tuple[int, int]:
        """Returns how many slots of a prompt are stored, and how many of them are text in the head with most text."""
        _, positions = self.get_slots(row, prompt)
        is_text = ~prompt.visual_mask[row].to(positions.device)[positions]
        return positions.shape[1], int(is_text.sum(dim=-1).max()) if positions.shape[1] else 0

    def compress(self, prompt: Prompt, budgets: Sequence[int]) -> list[float]:
        """Keeps `budgets[row]` slots of every prompt; tokens behind the prompt stay.

        Returns how many tokens of each prompt were merged into kept ones, averaged over heads.
        """
        rows, num_merged = [], []
        for row, (budget, image_index) in enumerate(zip(budgets, prompt.image_index, strict=True)):
            slots, positions = self.get_slots(row, prompt)
            keys, values = (states[row][:, slots].to(self.device) for states in (self.keys, self.values))
            image_index = image_index.to(self.device)[positions]
            observer = self.observers[row]
            scores = observer.compute_scores(keys, image_index >= 0, seed=self.config.seed * 1000 + self.layer_idx)
            kept = select_slots(scores, image_index, budget, self.config)
            keys, values, count = merge_slots(keys, values, kept, positions, self.config, self._build_rotation(row))
            observer.keep(kept)
            num_merged.append(float(count.sum(dim=-1).float().mean()))
            rows.append((keys, values, positions.gather(1, kept).int()))
        length, num_later = max(budgets), self.logical_length - prompt.length
        later = slice(self.physical_length - num_later, None)
        kept_keys, kept_values = (torch.stack([_pad_left(row[i], length, 0) for row in rows]) for i in (0, 1))
        self.keys = torch.cat([kept_keys.to(self.keys.device), self.keys[:, :, later]], 2)
        self.values = torch.cat([kept_values.to(self.values.device), self.values[:, :, later]], 2)
        self.positions = torch.stack([_pad_left(positions, length, -1) for _, _, positions in rows])
        self._note_empty_slots(are_there_any=min(budgets) < length)
        self.compressed_length = prompt.length
        self._key_buffer = self._value_buffer = None
        self.rotary, self.expected_length = [], 0
        if self.config.recompress == "never":
            self.observers = []
        return num_merged

    def _note_empty_slots(self, *, are_there_any: bool) -> None:
        self.start = self.is_kept = None
        if are_there_any and self.positions is not None:
            is_kept = self.positions[:, 0] >= 0  # all heads of a prompt keep as many
            self.start = (~is_kept).sum(dim=-1, dtype=torch.int32)
            self.is_kept = is_kept[:, None, None]

    def _build_rotation(self, row: int) -> Rotation | None:
        if self.config.merge_space == "rotated" or self.rotary_function is None:
            return None
        cos, sin = (torch.cat(tables, dim=1) for tables in zip(*self.rotary, strict=True))
        row = row if len(cos) > 1 else 0
        return build_rotation(self.rotary_function, cos[row], sin[row])

    def build_mask(self, attention_mask: Tensor | None, query_length: int) -> Tensor | None:
        """Returns the mask of this layer's slots, from the one that the model made for an uncompressed cache.

        Kept tokens of the prompt are never padding and come before all queries: what was said of them when the prompt
        was compressed holds on, and only the columns of later tokens are taken from `attention_mask`.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, 1, query_length, logical_length)`, *optional*):
                Boolean (sdpa) or additive (eager).
            query_length (`int`): number of new tokens.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1, query_length, physical_length)` of the same kind, or None if every
            query sees every slot.
        """
        if self.positions is None:
            return attention_mask
        if attention_mask is None or attention_mask.dtype == torch.bool:
            is_hiding = attention_mask is not None and self.hides_later
            if query_length == 1 and self.start is None and not is_hiding:
                return None  # without a mask attention takes its fast path
        batch_size, num_new = self.positions.shape[0], self.physical_length - self.num_kept
        if attention_mask is None:
            new = self.positions.new_ones(query_length, num_new, dtype=torch.bool).tril(num_new - query_length)
        else:
            new = attention_mask[..., attention_mask.shape[-1] - num_new :]
        is_kept = new.new_ones(1, 1, 1, self.num_kept, dtype=torch.bool) if self.is_kept is None else self.is_kept
        if new.dtype != torch.bool:
            is_kept = new.new_zeros(is_kept.shape).masked_fill(~is_kept, torch.finfo(new.dtype).min)
        return torch.cat([part.expand(batch_size, 1, query_length, -1) for part in (is_kept, new)], dim=-1)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens; only tokens that came after the compression can be removed."""
        if tokens_to_remove > 0:
            raise ValueError(f"Expected minus the number of tokens to remove, got {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        length = self.physical_length + tokens_to_remove
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]
        self.logical_length += tokens_to_remove

    def take_back(self, logical_length: int) -> None:
        """Goes back to an earlier length, after a forward that was cut short; only tokens after the prompt go."""
        num_evicted = 0 if self.positions is None else self.compressed_length - self.num_kept
        length = logical_length - num_evicted
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]
        self._key_buffer = self._value_buffer = None  # it may have been filled in part
        self.logical_length = logical_length

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
        if not self.is_initialized:
            return
        indices, length = indices.to(self.keys.device), self.physical_length
        if self._key_buffer is None:
            self.keys, self.values = self.keys[indices], self.values[indices]
        else:  # with their room for tokens to come, so that beams need no other copy
            self._key_buffer, self._value_buffer = self._key_buffer[indices], self._value_buffer[indices]
            self.keys, self.values = self._key_buffer[:, :, :length], self._value_buffer[:, :, :length]
        if self.positions is not None:
            self.positions = self.positions[indices.to(self.positions.device)]
            self._note_empty_slots(are_there_any=self.start is not None)
        self.rotary = [tuple(t[indices.to(t.device)] if len(t) > 1 else t for t in pair) for pair in self.rotary]
        if self.observers:
            self.observers = [self.observers[row].copy() for row in indices.tolist()]

    def offload(self) -> None:
        """Moves what is stored to the CPU."""
        super().offload()  # type: ignore[no-untyped-call]
        self._key_buffer = self._value_buffer = None

    def prefetch(self) -> None:
        """Moves what is stored back to the device of the layer."""
        super().prefetch()  # type: ignore[no-untyped-call]
        self._key_buffer = self._value_buffer = None


def _pad_left(states: Tensor, length: int, value: float) -> Tensor:
    """Returns `(num_heads, num_kept, ...)` filled up at the front to `(num_heads, length, ...)`."""
    missing = states.new_full((states.shape[0], length - states.shape[1], *states.shape[2:]), value)
    return torch.cat([missing, states], dim=1)
