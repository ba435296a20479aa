"""The cache: counts tokens as if nothing were evicted, stores only what is kept."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from meda_cache.compression import DEFAULT_PRESET, CompressionConfig
from meda_cache.layer import MedaLayer, Reading
from meda_cache.policy import allocate_prompt, count_requested, weigh_layers
from meda_cache.prompt import Prompt, read_prompt
from meda_cache.report import Allocation, CacheStats, build_stats
from meda_cache.upstream import build_layers, check_decoder, get_visual_token_ids


class MedaCache(Cache):
    """A KV cache that compresses the prompt once, layer by layer according to need, and then grows as usual.

    The prompt is read with full attention. Once it is complete each layer gets a share of the budget, keeps its most
    important tokens, and may merge the others into them; the presets `"meda"` (arXiv 2502.17599), `"lookm"`, `"h2o"`
    and others say how, see [`CompressionConfig`]. To the model the cache looks uncompressed: lengths, masks and
    positions are those of all tokens seen. Layers with sliding-window or linear attention are left alone.

    The model has to be attached, see [`attach`] and [`~MedaCache.from_model`]: a cache alone sees neither queries nor
    which tokens are images.

    Args:
        config (`PreTrainedConfig`): `model.config`.
        preset (`str`, *optional*, defaults to `"balanced"`): name of the method, one of [`PRESETS`].
        compression (`CompressionConfig`, *optional*): how to compress, instead of a preset.
        offloading (`bool`, *optional*, defaults to `False`): keep layers on the CPU between their turns (CUDA only).
        **options: options of [`CompressionConfig`] that replace those of the preset, e.g. `keep_ratio=0.2`.

    Raises:
        ValueError: if an option is out of range, or if the model's keys and values can't be compressed.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from meda_cache import MedaCache, attach
    >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...                      num_attention_heads=4, num_key_value_heads=2)
    >>> model = LlamaForCausalLM(config).eval()
    >>> cache = MedaCache(model.config, keep_ratio=0.25)
    >>> with attach(model):
    ...     _ = model.generate(torch.arange(3, 43)[None], past_key_values=cache, max_new_tokens=4, do_sample=False)
    >>> sum(layer.budget[0] for layer in cache.stats().layers) == 0.25 * 2 * 40
    True

    ```
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        preset: str | None = None,
        compression: CompressionConfig | None = None,
        offloading: bool = False,
        **options: Any,
    ):
        if not isinstance(config, PreTrainedConfig):
            raise TypeError(
                f"Expected the configuration of a model, got {type(config).__name__}; pass `model.config`."
            )
        check_decoder(config)
        if compression is not None and (options or preset is not None):
            given = sorted(options) + ([] if preset is None else ["preset"])
            raise ValueError(f"Expected either `compression` or its options as keywords, got both: {given}.")
        self.compression = compression or CompressionConfig.from_preset(preset or DEFAULT_PRESET, **options)
        layers = build_layers(config, lambda index: MedaLayer(self.compression, index))
        super().__init__(layers=layers, offloading=offloading)
        if not self.managed_layers:
            raise ValueError(
                f"Expected a model with full-attention layers, got {type(config).__name__} without any: "
                "sliding-window and linear layers bound their own memory, use `DynamicCache`."
            )
        self.visual_token_ids = get_visual_token_ids(config)
        pad_token_ids = (getattr(c, "pad_token_id", None) for c in (config, config.get_text_config(decoder=True)))
        self.pad_token_id = next((token_id for token_id in pad_token_ids if token_id is not None), None)
        self._forget_prompt()

    @classmethod
    def from_model(cls, model: nn.Module, **options: Any) -> "MedaCache":
        """Attaches `model` (until [`detach`]; once is enough) and returns a cache for it.

        Args:
            model (`PreTrainedModel`, or a module that wraps one): see [`attach`].
            **options: arguments of [`MedaCache`], e.g. `keep_ratio=0.2, preset="snapkv"`.
        """
        from meda_cache.attachment import attach, find_model

        cache = cls(find_model(model).config, **options)
        attach(model)
        return cache

    def _forget_prompt(self) -> None:
        self.is_compressed = False
        self.is_attached = False
        self.prompt: Prompt | None = None
        self._expected_length: int | None = None
        self._expected_visual: Tensor | None = None
        self._is_read = False  # whether a prompt has been read that is not compressed yet
        self._is_recording_past = False
        self._before: tuple[int, Prompt | None, bool] = (0, None, False)  # state when the present forward began
        self._allocations: list[Allocation] = []

    @property
    def _is_done_reading(self) -> bool:
        """Whether all that comes now is kept as it is."""
        return self.is_compressed and self.compression.recompress == "never"

    @property
    def managed_layers(self) -> dict[int, MedaLayer]:
        """The layers that are compressed, by their index."""
        return {index: layer for index, layer in enumerate(self.layers) if isinstance(layer, MedaLayer)}

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt as far as it has been read, padding included; those that came later don't count."""
        layer = next(iter(self.managed_layers.values()))
        return layer.compressed_length if self.is_compressed else min(layer.seq_length, self._expected_length or 2**62)

    def expect(self, prompt_length: int | None = None, *, visual_mask: Tensor | None = None) -> None:
        """Declares what is to come, for a model that is called directly; an attached `generate` does it by itself.

        With a declared length the prompt may come in pieces, or together with tokens behind it that are no part of it.

        Args:
            prompt_length (`int`, *optional*): tokens of the prompt from the start of the context, padding included.
            visual_mask (`torch.Tensor` of shape `(batch_size, prompt_length)`, bool, *optional*):
                Which of them are visual, for a model that is given `inputs_embeds`. Its width declares the length.

        Raises:
            ValueError: if the length isn't above that of the tokens seen, or if the two contradict each other.
        """
        if visual_mask is not None:
            if prompt_length not in (None, visual_mask.shape[1]):
                raise ValueError(
                    f"Expected `visual_mask` of shape (batch_size, {prompt_length}), got {tuple(visual_mask.shape)}."
                )
            prompt_length, self._expected_visual = visual_mask.shape[1], visual_mask
        if prompt_length is None or prompt_length <= self.get_seq_length():
            raise ValueError(
                f"Expected a prompt longer than the {self.get_seq_length()} tokens seen, got {prompt_length}."
            )
        self._expected_length = prompt_length
        for layer in self.managed_layers.values():
            layer.expected_length = prompt_length

    def begin_forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        *,
        inputs_embeds: Tensor | None = None,
        token_types: Tensor | None = None,
        has_images: bool = False,
    ) -> None:
        """Tells the cache what the attached model is about to read; called by the hook of [`attach`].

        Raises:
            RuntimeError: if an earlier forward failed half way, or if a drafted forward comes undeclared.
            ValueError: if the prompt comes in several pieces without being declared, with images but without their
                tokens, as embeddings without `visual_mask`, or with padding but without a mask.
        """
        if len({layer.seq_length for layer in self.managed_layers.values()}) > 1:
            raise RuntimeError(
                "Expected layers that have seen the same tokens, but a forward failed half way; call `cache.reset()` "
                "and read the prompt again."
            )
        self.is_attached = True
        num_seen = self.get_seq_length()
        self._before = (num_seen, self.prompt, self._is_read)
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None:
            return
        num_new = inputs.shape[1]
        if self._is_read:
            self._close_prompt(num_seen, num_new)
        if self._is_done_reading:
            return
        new = read_prompt(
            input_ids,
            attention_mask,
            num_seen=num_seen,
            num_new=num_new,
            batch_size=len(inputs),
            visual_token_ids=self.visual_token_ids,
            token_types=token_types,
            visual_mask=self._declared_visual(len(inputs), num_seen, num_new),
            pad_token_id=self.pad_token_id,
        )
        if has_images and not new.visual_mask.any():
            raise ValueError(
                f"Expected the tokens of the images in `input_ids` (ids {self.visual_token_ids}), got none; make the "
                "cache from `model.config`, not from its text part."
            )
        self.prompt = new if self.prompt is None else self.prompt.extend(new)
        is_drafting = self._is_recording_past and self._expected_length is None
        if not (self.is_compressed and (num_new == 1 or is_drafting)):  # else it decodes between two turns
            self._announce(self.prompt, num_seen, num_new)

    def _close_prompt(self, num_seen: int, num_new: int) -> None:
        """Compresses a prompt that nobody declared when the first token comes after it."""
        if num_new > 1:
            raise ValueError(
                f"Expected the prompt in one forward, got {num_seen} tokens and now {num_new} more; call "
                "`cache.compress()` between them to keep the later ones whole, or `cache.expect(prompt_length)` "
                "before the first."
            )
        self.compress()
        self._before = (num_seen, self.prompt, False)  # it stays compressed if this forward fails

    def _declared_visual(self, batch_size: int, num_seen: int, num_new: int) -> Tensor | None:
        """Returns which new tokens were declared visual, `(batch_size, num_new)`, with a row for each beam."""
        mask = self._expected_visual
        if mask is None:
            return None
        if batch_size % len(mask):
            raise ValueError(
                f"Expected `visual_mask` with a row for each of the {batch_size} prompts, got {len(mask)} rows."
            )
        missing = max(0, num_seen + num_new - mask.shape[1])
        mask = nn.functional.pad(mask, (0, missing))[:, num_seen : num_seen + num_new]
        return mask.repeat_interleave(batch_size // len(mask), dim=0)

    def _announce(self, prompt: Prompt, num_seen: int, num_new: int) -> None:
        """Tells the layers what they are about to read of a prompt, as far as it has come."""
        expected = self._expected_length
        if expected is None and self._is_recording_past:
            raise RuntimeError(
                "Expected the length of the prompt before assisted decoding; call `cache.expect(prompt_length)`, or "
                "`generate` of the attached model."
            )
        self.prompt = prompt.cut(expected or prompt.seq_length)
        self._is_read = expected is None or num_seen + num_new >= expected
        empty = (~self.prompt.token_mask.any(dim=-1)).nonzero().flatten().tolist()
        if empty and self._is_read:
            raise ValueError(f"Expected at least one token in every prompt, got only padding in rows {empty}.")
        if self.compression.keep_ratio < 1:
            reading = Reading(self.prompt, is_whole=num_seen == 0 and self._is_read)
            for layer in self.managed_layers.values():
                layer.reading = reading

    def end_forward(self, *, failed: bool = False) -> None:
        """Tells the cache that the forward of the attached model is over.

        If it failed, a prompt that some layer has read in part is forgotten; one that was refused leaves no trace.

        Raises:
            RuntimeError: if the attention of a layer did not go through the cache.
        """
        self.is_attached = False
        if failed:
            num_seen, prompt, is_read = self._before
            if num_seen > 0 and all(layer.seq_length == num_seen for layer in self.managed_layers.values()):
                self.prompt, self._is_read = prompt, is_read
                for layer in self.managed_layers.values():
                    layer.reading = None
            elif not self.is_compressed:
                self.reset()
            return
        for index, layer in self.managed_layers.items():
            if layer.awaits_attention:
                self._raise_bypassed(index)
        if self._is_read and (self._expected_length is not None or self.compression.commit == "prefill"):
            self.compress()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new tokens to a layer."""
        self._require_attached()
        if key_states.requires_grad or value_states.requires_grad:
            raise RuntimeError("Expected inference, got keys that require gradients; use `torch.no_grad()`.")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns the sizes of the mask that an uncompressed cache would need."""
        self._require_attached()
        return super().get_mask_sizes(query_length, layer_idx)

    def compress(self, keep_ratio: float | None = None) -> None:
        """Compresses the prompt read so far, e.g. to ask many questions about one context.

        Args:
            keep_ratio (`float`, *optional*): share of the tokens to keep, instead of the one of the options.

        Raises:
            RuntimeError: if no prompt has been read, if it is compressed already, or if attention bypassed the cache.
            ValueError: if a function of the options returns something else than it should. The cache is then empty.
        """
        if not self._is_read or self.prompt is None:
            state = "it is compressed already" if self.is_compressed else "none has been read"
            raise RuntimeError(f"Expected a prompt that is not compressed yet, but {state}; see `MedaCache.reset`.")
        layers = self.managed_layers
        for index, layer in layers.items():
            if layer.reading is not None or layer.awaits_attention:
                self._raise_bypassed(index)
        if keep_ratio is not None:
            self._set_keep_ratio(keep_ratio)
        if self.compression.keep_ratio < 1:
            try:
                self._compress_layers(self.prompt)
            except Exception:
                self.reset()  # some layers are compressed and others are not
                raise
        self.is_compressed, self._is_read, self._expected_length, self._expected_visual = True, False, None, None
        for layer in layers.values():
            layer.compressed_length = self.prompt.seq_length

    def _compress_layers(self, prompt: Prompt) -> None:
        if self.offloading:
            torch.accelerator.synchronize()  # copies to the CPU may be under way
        self._allocations = self._allocate(prompt)
        for number, layer in enumerate(self.managed_layers.values()):
            layer.compress(prompt, [allocation.budgets[number] for allocation in self._allocations])

    def _set_keep_ratio(self, keep_ratio: float) -> None:
        if self.compression.keep_ratio == 1 and keep_ratio < 1:
            raise ValueError(
                f"Expected a cache with `keep_ratio` below 1, which takes statistics, to compress to {keep_ratio}."
            )
        self.compression = replace(self.compression, keep_ratio=keep_ratio)
        for layer in self.managed_layers.values():
            layer.config = self.compression

    def _allocate(self, prompt: Prompt) -> list[Allocation]:
        """Divides the budget of every prompt over the layers."""
        layers, config = list(self.managed_layers.values()), self.compression
        entropies = [layer.complete(prompt) for layer in layers]
        allocations = []
        for row, seq_len in enumerate(prompt.token_mask.sum(dim=-1).tolist()):
            entropy = [None if (value := values[row]) is None else float(value) for values in entropies]
            numbers = [float("nan") if value is None else value for value in entropy]
            weights = weigh_layers(torch.tensor(numbers, dtype=torch.float64), config)
            num_slots, num_text = zip(*(layer.count_slots(row, prompt) for layer in layers), strict=True)
            allocations.append(
                Allocation(
                    entropies=entropy,
                    kind=layers[0].observers[row].entropy_kind,
                    weights=weights.tolist(),
                    budgets=allocate_prompt(weights, seq_len, num_slots, num_text, config),
                    requested=count_requested(config.keep_ratio, len(layers), seq_len),
                )
            )
        return allocations

    def stats(self) -> CacheStats:
        """Returns what is stored and why, layer by layer; budgets and entropies are those of the last compression."""
        return build_stats(self.managed_layers, self.prompt, self._allocations, is_compressed=self.is_compressed)

    def clone(self) -> "MedaCache":
        """Returns a copy that goes its own way, e.g. to answer another question about the same compressed context."""
        return copy.deepcopy(self)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens, all of which must have come after the compression.

        Raises:
            ValueError: for a positive number, or if a token of the prompt would be removed.
        """
        tokens_to_remove = int(tokens_to_remove)  # older versions of transformers hand in a tensor
        later = self.get_seq_length() - self.prompt_length
        if tokens_to_remove < 0 and later + tokens_to_remove < 0:
            raise ValueError(
                f"Expected at most {later} tokens to remove, those that came after the prompt, got "
                f"{-tokens_to_remove}: evicted tokens can't be brought back; use `reset` and read again."
            )
        super().crop(tokens_to_remove)
        if self.prompt is not None:
            self.prompt = self.prompt.cut(self.get_seq_length())

    def reset(self) -> None:
        """Empties the cache for the next prompt."""
        super().reset()  # type: ignore[no-untyped-call]
        self._forget_prompt()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the batch for beam search."""
        super().reorder_cache(beam_idx)
        self._select_prompts(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch `repeats` times in place."""
        super().batch_repeat_interleave(repeats)
        if self.prompt is not None:
            self._select_prompts(torch.arange(len(self.prompt)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of the batch given by `indices`, in that order."""
        super().batch_select_indices(indices)
        self._select_prompts(indices)

    def _select_prompts(self, indices: Tensor) -> None:
        if self.prompt is not None:
            self.prompt = self.prompt.select(indices)
            self._allocations = [self._allocations[row] for row in indices.tolist()] if self._allocations else []

    def activate_past_recording(self) -> None:
        """Announces assisted decoding, whose forwards carry drafted tokens that may be taken back."""
        super().activate_past_recording()  # type: ignore[no-untyped-call]
        self._is_recording_past = True

    def _require_attached(self) -> None:
        if not self.is_attached:
            raise RuntimeError(
                "MedaCache needs a model that is attached, got one that is not; write "
                "`with meda_cache.attach(model):` around the call, or call `meda_cache.attach(model)` once."
            )

    def _raise_bypassed(self, layer_idx: int) -> None:
        raise RuntimeError(
            f"The attention of layer {layer_idx} did not go through MedaCache; the model was attached and then given "
            "another attention implementation, or it computes attention in its own code: attach it again, or use a "
            "model class of transformers."
        )
