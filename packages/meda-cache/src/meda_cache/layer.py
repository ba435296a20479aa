"""One layer of the cache: what is stored, where it stood in the prompt, and the mask that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from meda_cache.compression import CompressionConfig
from meda_cache.observation import PromptObserver
from meda_cache.policy import Rotation, merge_slots, select_slots
from meda_cache.prompt import Prompt
from meda_cache.upstream import RotaryFunction, build_rotation


@dataclass(frozen=True)
class Reading:
    """What a forward reads: the prompt so far, and whether it comes in this one forward."""

    prompt: Prompt
    is_whole: bool


class MedaLayer(DynamicLayer):
    """Keys and values of one full-attention layer, with the original position of every stored slot.

    `keys` and `values` have shape `(batch_size, num_key_value_heads, physical_length, head_dim)`. Once the prompt is
    compressed, `positions` of shape `(batch_size, num_key_value_heads, num_kept)` says where the first slots stood in
    it, in ascending order; the other slots are the tokens that came later. A prompt that keeps less than another one
    of the batch has empty slots in front, with position -1.
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
        self.is_initialized = False
        self.seq_length = 0
        self.compressed_length = 0  # tokens of the prompt that `positions` tells about
        self.has_empty_slots = False
        self.expected_length = 0
        self.reading: Reading | None = None
        self.observers: list[PromptObserver] = []
        self.rotary: list[tuple[Tensor, ...]] = []  # cosines and sines of each forward of the prompt
        self.rotary_function: RotaryFunction | None = None
        self.num_merged: list[float] = []
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
        return self.seq_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the length and the offset of the mask that an uncompressed cache would need."""
        return self.seq_length + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values and returns all that are stored; the returned keys lead back to this layer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new = key_states.shape[-2]
        if self.seq_length == 0 and num_new >= self.expected_length:
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
        num_new = key_states.shape[-2]
        length = self.physical_length if self.seq_length else 0
        needed, buffer = length + num_new, self._key_buffer
        is_frozen = buffer is not None and buffer.is_inference() and not torch.is_inference_mode_enabled()
        if buffer is None or buffer.shape[-2] < needed or is_frozen:
            to_come = max(0, self.expected_length - self.seq_length - num_new)
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

    def get_slots(self, row: int, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Returns the slots of a prompt and their positions in it.

        They are `(num_slots,)` and `(num_key_value_heads, num_slots)`.
        """
        device, num_heads = self.device, self.keys.shape[1]
        tokens = prompt.token_mask[row].to(device).nonzero().flatten()
        if self.positions is None:
            return tokens, tokens.expand(num_heads, -1)
        is_kept = self.positions[row, 0] >= 0
        later = tokens[tokens >= self.compressed_length]
        slots = torch.cat([is_kept.nonzero().flatten(), later - self.compressed_length + self.num_kept])
        kept = self.positions[row][:, is_kept].long()
        return slots, torch.cat([kept, later.expand(num_heads, -1)], dim=1)

    def observe(
        self, query_states: Tensor, key_states: Tensor, *, scaling: float | None, attention_mask: Tensor | None
    ) -> None:
        """Takes the statistics of every prompt of the batch from queries and keys of the forward that is under way."""
        reading, self.reading = self.reading, None
        if reading is None:
            return
        prompt, num_queries = reading.prompt, query_states.shape[2]
        first = self.seq_length - num_queries  # position of the first query
        self.observers = self.observers or [PromptObserver(self.config) for _ in range(len(prompt))]
        for row, observer in enumerate(self.observers):
            slots, positions = self.get_slots(row, prompt)
            num_rows = int((positions[0] >= first).sum())
            if num_rows == 0:
                continue
            queries = positions[0, len(slots) - num_rows :] - first
            visible = None
            if attention_mask is not None and self.positions is None:
                mask = attention_mask[row if attention_mask.shape[0] > 1 else 0, 0]
                visible = _as_own_mask(_take(_take(mask, queries, 0), slots, 1))
            states = _take(query_states[row], queries, 1), _take(key_states[row], slots, 1)
            if self.positions is not None:  # a later turn: the layers' entropies stay those of the first prompt
                observer.observe_keys(*states, scaling=scaling, visible=None)
                continue
            visual_mask = prompt.visual_mask[row].to(slots.device)[slots]
            options: dict[str, Any] = {"scaling": scaling, "visible": visible, "is_whole": reading.is_whole}
            observer.observe(*states, visual_mask, **options)

    def complete(self, prompt: Prompt) -> list[Tensor | None]:
        """Returns the entropy of every prompt, once it has been read."""
        if self.positions is None:
            for row, observer in enumerate(self.observers):
                slots, _ = self.get_slots(row, prompt)
                keys = _take(self.keys[row].to(self.device), slots, 1)
                observer.complete(keys, prompt.visual_mask[row].to(slots.device)[slots])
        return [observer.entropy for observer in self.observers]

    def count_empty_slots(self) -> Tensor | None:
        """Returns the number of empty slots in front for each prompt, `(batch_size,)`, or None if there are none."""
        if self.positions is None or not self.has_empty_slots:
            return None
        return (self.positions[:, 0] < 0).sum(dim=-1)

    def count_slots(self, row: int, prompt: Prompt) -> tuple[int, int]:
        """Returns how many slots of a prompt are stored, and how many of them are text in the head with most text."""
        slots, positions = self.get_slots(row, prompt)
        is_text = ~prompt.visual_mask[row].to(slots.device)[positions]
        return len(slots), int(is_text.sum(dim=-1).max()) if len(slots) else 0

    def compress(self, prompt: Prompt, budgets: Sequence[int]) -> None:
        """Keeps `budgets[row]` slots of every prompt; tokens behind the prompt stay."""
        rows, self.num_merged = [], []
        for row, (budget, image_index) in enumerate(zip(budgets, prompt.image_index, strict=True)):
            slots, positions = self.get_slots(row, prompt)
            keys, values = (_take(states[row].to(self.device), slots, 1) for states in (self.keys, self.values))
            image_index = image_index.to(slots.device)[positions]
            observer = self.observers[row]
            scores = observer.compute_scores(keys, image_index >= 0, seed=self.config.seed * 1000 + self.layer_idx)
            kept = select_slots(scores, image_index, budget, self.config)
            keys, values, count = merge_slots(keys, values, kept, positions, self.config, self._build_rotation(row))
            observer.keep(kept)
            self.num_merged.append(float(count.sum(dim=-1).float().mean()))
            rows.append((keys, values, positions.gather(1, kept).int()))
        length, num_later = max(budgets), self.seq_length - prompt.seq_length
        later = slice(self.physical_length - num_later, None)
        self.has_empty_slots = min(budgets) < length
        kept_keys, kept_values = (torch.stack([_pad_left(row[i], length, 0) for row in rows]) for i in (0, 1))
        self.keys = torch.cat([kept_keys.to(self.keys.device), self.keys[:, :, later]], 2)
        self.values = torch.cat([kept_values.to(self.values.device), self.values[:, :, later]], 2)
        self.positions = torch.stack([_pad_left(positions, length, -1) for _, _, positions in rows])
        self.compressed_length = prompt.seq_length
        self._key_buffer = self._value_buffer = None
        self.rotary, self.expected_length = [], 0
        if self.config.recompress == "never":
            for observer in self.observers:
                observer.key_mass = observer.num_queries = observer.window = None

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
        num_new = self.physical_length - self.num_kept
        if attention_mask is None:
            new = is_kept.new_ones(query_length, num_new).tril(num_new - query_length)
            return torch.cat([is_kept, new.expand(len(is_kept), 1, -1, -1)], dim=-1)
        new = attention_mask[..., attention_mask.shape[-1] - num_new :].expand(len(is_kept), 1, -1, -1)
        if attention_mask.dtype == torch.bool:
            # Without a mask attention takes its fast path, and a single token that sees all needs none.
            is_all = query_length == 1 and not self.has_empty_slots and bool(new.all())
            return None if is_all else torch.cat([is_kept, new], dim=-1)
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
        if not self.is_initialized:
            return
        indices, length = indices.to(self.keys.device), self.physical_length
        if self._key_buffer is None:
            self.keys, self.values = self.keys[indices], self.values[indices]
        else:  # with their room for tokens to come, so that beams need no other copy
            self._key_buffer, self._value_buffer = self._key_buffer[indices], self._value_buffer[indices]
            self.keys, self.values = self._key_buffer[:, :, :length], self._value_buffer[:, :, :length]
        if self.positions is not None:
            self.positions = self.positions[indices]
        rows = indices.tolist()
        self.rotary = [tuple(t[indices.to(t.device)] if len(t) > 1 else t for t in pair) for pair in self.rotary]
        self.observers = [self.observers[row].copy() for row in rows] if self.observers else []
        self.num_merged = [self.num_merged[row] for row in rows] if self.num_merged else []

    def offload(self) -> None:
        """Moves what is stored to the CPU."""
        super().offload()  # type: ignore[no-untyped-call]
        self._key_buffer = self._value_buffer = None

    def prefetch(self) -> None:
        """Moves what is stored back to the device of the layer."""
        super().prefetch()  # type: ignore[no-untyped-call]
        self._key_buffer = self._value_buffer = None


def _take(states: Tensor, index: Tensor, dim: int) -> Tensor:
    """Returns `states` at ascending indices of a dimension, without a copy where they follow one another."""
    if len(index) == 0 or int(index[-1] - index[0]) != len(index) - 1:
        return states.index_select(dim, index)
    return states.narrow(dim, int(index[0]), len(index))


def _as_own_mask(mask: Tensor) -> Tensor | None:
    """Returns True where a query `(num_queries, num_keys)` sees a key, or None if the mask is the causal one."""
    num_queries, num_keys = mask.shape
    offset = num_keys - num_queries
    lowest = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    columns, step = torch.arange(num_keys, device=mask.device), max(1, 2**20 // max(num_keys, 1))
    for start in range(0, num_queries, step):
        rows = torch.arange(start, min(start + step, num_queries), device=mask.device)[:, None]
        tile = mask[start : start + step]
        if not torch.equal(tile if lowest is None else tile > lowest, columns <= rows + offset):
            return mask if lowest is None else mask > lowest
    return None


def _pad_left(states: Tensor, length: int, value: float) -> Tensor:
    """Returns `(num_heads, num_kept, ...)` filled up at the front to `(num_heads, length, ...)`."""
    missing = states.new_full((states.shape[0], length - states.shape[1], *states.shape[2:]), value)
    return torch.cat([missing, states], dim=1)
