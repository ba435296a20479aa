"""The cache: counts tokens as if nothing were evicted, stores only what is kept."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from meda_cache.allocation import PromptBudgets, compress_layers
from meda_cache.attachment import attach
from meda_cache.compression import DEFAULT_PRESET, CompressionConfig
from meda_cache.forwards import ForwardState
from meda_cache.layer import MedaLayer
from meda_cache.prompt import Prompt
from meda_cache.reading import PromptReader
from meda_cache.report import CacheStats, build_stats
from meda_cache.upstream import build_layers, check_decoder, empty_layer, find_model, get_visual_token_ids


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
        if offloading and not torch.accelerator.is_available():
            raise ValueError(
                "Expected a GPU to offload from, got none: leave `offloading` out, the cache is in memory."
            )
        super().__init__(layers=layers, offloading=offloading)
        # The layers that are compressed, by their index.
        self.managed_layers = {index: layer for index, layer in enumerate(layers) if isinstance(layer, MedaLayer)}
        if not self.managed_layers:
            raise ValueError(
                f"Expected a model with full-attention layers, got {type(config).__name__} without any: "
                "sliding-window and linear layers bound their own memory, use `DynamicCache`."
            )
        pad_token_ids = (getattr(c, "pad_token_id", None) for c in (config, config.get_text_config(decoder=True)))
        pad_token_id = next((token_id for token_id in pad_token_ids if token_id is not None), None)
        self.reader = PromptReader(get_visual_token_ids(config), pad_token_id)
        self._forget()

    @classmethod
    def from_model(cls, model: nn.Module, **options: Any) -> "MedaCache":
        """Attaches `model` (until [`detach`]; once is enough) and returns a cache for it.

        Args:
            model (`PreTrainedModel`, or a module that wraps one): see [`attach`].
            **options: arguments of [`MedaCache`], e.g. `keep_ratio=0.2, preset="snapkv"`.
        """
        cache = cls(find_model(model).config, **options)
        attach(model)
        return cache

    def _forget(self) -> None:
        self.reader.reset()
        self.state = ForwardState()
        self._budgets: list[PromptBudgets] = []
        self._order: Tensor | None = None  # the prompt of the compression that each row comes from

    @property
    def prompt(self) -> Prompt | None:
        """Which tokens of the prompts are visual and which are padding, as far as they have been read."""
        return self.reader.prompt

    @property
    def is_compressed(self) -> bool:
        """Whether a prompt has been compressed."""
        return self.reader.is_compressed

    @property
    def is_attached(self) -> bool:
        """Whether a forward of an attached model is under way."""
        return self.state.is_under_way

    @property
    def is_done_reading(self) -> bool:
        """Whether all that comes now is kept as it is."""
        return self.is_compressed and self.compression.recompress == "never"

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt as far as it has been read, padding included; those that came later don't count."""
        layer = next(iter(self.managed_layers.values()))
        length = layer.logical_length
        return layer.compressed_length if self.is_compressed else min(length, self.reader.expected_length or length)

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
        length = self.reader.expect(prompt_length, visual_mask, num_seen=self.get_seq_length())
        for layer in self.managed_layers.values():
            layer.expected_length = length

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
        if not self.reader.is_read or self.prompt is None:
            state = "it is compressed already" if self.is_compressed else "none has been read"
            raise RuntimeError(f"Expected a prompt that is not compressed yet, but {state}; see `MedaCache.reset`.")
        layers = self.managed_layers
        self.require_attention()
        if keep_ratio is not None:
            self._set_keep_ratio(keep_ratio)
        if self.compression.keep_ratio < 1:
            try:
                if self.offloading:
                    torch.accelerator.synchronize()  # copies to the CPU may be under way
                self._budgets = compress_layers(list(layers.values()), self.prompt, self.compression)
                self._order = torch.arange(len(self.prompt))
            except BaseException:  # or interrupted from the keyboard
                self.reset()  # some layers are compressed and others are not
                raise
        self.reader.close()
        for layer in layers.values():
            layer.compressed_length = self.prompt.length

    def _set_keep_ratio(self, keep_ratio: float) -> None:
        if self.compression.keep_ratio == 1 and keep_ratio < 1:
            raise ValueError(
                f"Expected a cache with `keep_ratio` below 1, which takes statistics, to compress to {keep_ratio}."
            )
        self.compression = replace(self.compression, keep_ratio=keep_ratio)
        for layer in self.managed_layers.values():
            layer.config = self.compression

    def stats(self) -> CacheStats:
        """Returns what is stored and why, layer by layer; budgets and entropies are those of the last compression."""
        rows = [] if self._order is None else self._order.tolist()
        budgets = [self._budgets[row] for row in rows]
        return build_stats(self.managed_layers, self.prompt, budgets, is_compressed=self.is_compressed)

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
            self.reader.prompt = self.prompt.cut(self.get_seq_length())

    def reset(self) -> None:
        """Empties the cache for the next prompt."""
        for layer in self.layers:
            empty_layer(layer)
        self._forget()

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
            self.reader.prompt = self.prompt.select(indices)
        if self._order is not None:
            self._order = self._order.to(indices.device)[indices]

    def activate_past_recording(self) -> None:
        """Announces assisted decoding, whose forwards carry drafted tokens that may be taken back."""
        super().activate_past_recording()  # type: ignore[no-untyped-call]
        self.reader.is_drafting = True

    def _require_attached(self) -> None:
        if not self.is_attached:
            raise RuntimeError(
                "MedaCache needs a model that is attached, got one that is not; write "
                "`with meda_cache.attach(model):` around the call, or call `meda_cache.attach(model)` once."
            )

    def require_attention(self) -> None:
        """Raises if the attention of a layer did not go through the cache."""
        for index, layer in self.managed_layers.items():
            if layer.reading is not None or layer.awaits_attention:
                raise RuntimeError(
                    f"The attention of layer {index} did not go through MedaCache; the model was attached and then "
                    "given another attention implementation, or it computes attention in its own code: attach it "
                    "again, or use a model class of transformers."
                )
