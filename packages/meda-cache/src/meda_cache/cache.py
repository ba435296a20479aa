"""The cache: counts tokens as if nothing were evicted, stores only what is kept."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig

from meda_cache.compression import CompressionConfig, allocate_prompt
from meda_cache.layer import MedaLayer, Prompt
from meda_cache.report import CacheStats, LayerStats
from meda_cache.upstream import build_layers, get_visual_token_ids


class MedaCache(Cache):
    """A KV cache that compresses the prompt once, layer by layer according to need, and then grows as usual.

    The prompt is read with full attention. At the first decoding step (or when [`~MedaCache.compress`] is called) each
    layer gets a share of the budget by its cross-modal attention entropy, keeps its last and most attended tokens, and
    merges the others into them (MEDA, arXiv 2502.17599). To the model the cache looks uncompressed: lengths, masks and
    positions are those of all tokens seen. Layers with sliding-window or linear attention are left alone.

    The model has to be attached, see [`attach`]: a cache alone sees neither queries nor which tokens are images.

    Args:
        config (`PreTrainedConfig`): `model.config`.
        compression (`CompressionConfig`, *optional*): how to compress; or give its options as keywords.
        **options: options of [`CompressionConfig`], e.g. `keep_ratio=0.2`.

    Raises:
        ValueError: if an option is out of range, or if the model has no layer with full attention.

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

    def __init__(self, config: PreTrainedConfig, *, compression: CompressionConfig | None = None, **options: Any):
        if not isinstance(config, PreTrainedConfig):
            raise TypeError(
                f"Expected the configuration of a model, got {type(config).__name__}; pass `model.config`."
            )
        if config.is_encoder_decoder:
            raise ValueError(f"Expected a decoder, got {type(config).__name__} of an encoder-decoder model.")
        if compression is not None and options:
            raise ValueError(f"Expected either `compression` or its options as keywords, got both: {sorted(options)}.")
        names = [field.name for field in fields(CompressionConfig)]
        if unknown := sorted(set(options) - set(names)):
            raise TypeError(f"Expected options of CompressionConfig ({', '.join(names)}), got {', '.join(unknown)}.")
        self.compression = compression if compression is not None else CompressionConfig(**options)
        super().__init__(layers=build_layers(config, lambda: MedaLayer(self.compression)))
        if not self.managed_layers:
            raise ValueError(
                f"Expected a model with full-attention layers, got {type(config).__name__} without any: "
                "sliding-window and linear layers bound their own memory, use `DynamicCache`."
            )
        self.visual_token_ids = get_visual_token_ids(config)
        pad_token_ids = (getattr(c, "pad_token_id", None) for c in (config, config.get_text_config(decoder=True)))
        self.pad_token_id = next((token_id for token_id in pad_token_ids if token_id is not None), None)
        self._forget_prompt()

    def _forget_prompt(self) -> None:
        self.is_compressed = False
        self.is_attached = False
        self.prompt: Prompt | None = None
        self._allocations: list[tuple[list[float | None], list[float], list[int]]] = []

    @property
    def managed_layers(self) -> dict[int, MedaLayer]:
        """The layers that are compressed, by their index."""
        return {index: layer for index, layer in enumerate(self.layers) if isinstance(layer, MedaLayer)}

    def begin_forward(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, *, has_images: bool = False
    ) -> None:
        """Tells the cache what the attached model is about to read; called by the hook of [`attach`].

        Raises:
            RuntimeError: if an earlier forward failed half way.
            ValueError: if the prompt comes as embeddings, in several pieces, with images but without their tokens, or
                with padding but without a mask.
        """
        if len({layer.seq_length for layer in self.managed_layers.values()}) > 1:
            raise RuntimeError(
                "Expected layers that have seen the same tokens, but a forward failed half way; call `cache.reset()` "
                "and read the prompt again."
            )
        self.is_attached = True
        if self.is_compressed or (self.prompt is not None and input_ids is not None and input_ids.shape[1] == 1):
            return
        if self.prompt is not None:
            raise ValueError(
                f"Expected the prompt in one forward, got {self.prompt.seq_length} tokens and now "
                f"{'embeddings' if input_ids is None else input_ids.shape[1]} more; call `cache.compress()` before a "
                "further turn if no token was generated from it yet, and leave `prefill_chunk_size` unset."
            )
        if input_ids is None:
            raise ValueError(
                "Expected `input_ids` with the prompt, got none: which tokens are visual can't be told from "
                "`inputs_embeds`; pass `input_ids` (and `pixel_values`) to the model."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"Expected `attention_mask` of shape {tuple(input_ids.shape)}, the shape of `input_ids`, got "
                f"{tuple(attention_mask.shape)}; pass the mask of the tokenizer."
            )
        visual_mask = torch.isin(input_ids, torch.tensor(self.visual_token_ids, device=input_ids.device))
        token_mask = torch.ones_like(visual_mask) if attention_mask is None else attention_mask.bool()
        empty = (~token_mask.any(dim=-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"Expected at least one token in every prompt, got only padding in rows {empty}.")
        if has_images and not visual_mask.any():
            raise ValueError(
                f"Expected the tokens of the images in `input_ids` (ids {self.visual_token_ids}), got none; make the "
                "cache from `model.config`, not from its text part."
            )
        if attention_mask is None and self.pad_token_id is not None:
            is_pad = input_ids == self.pad_token_id
            # One in front may be a token of its own that begins every prompt; two, or one in some rows, are padding.
            is_padded = is_pad[:, 0] & (is_pad[:, :2].all(dim=-1) | bool((~is_pad[:, 0]).any()))
            padded = is_padded.nonzero().flatten().tolist()
            if padded:
                raise ValueError(
                    f"Expected `attention_mask` with padded prompts, got none and rows {padded} begin with the "
                    "padding token; pass the mask of the tokenizer."
                )
        self.prompt = Prompt(visual_mask, token_mask)
        for layer in self.managed_layers.values():
            layer.prompt = self.prompt

    def end_forward(self, *, failed: bool = False) -> None:
        """Tells the cache that the forward of the attached model is over; a prompt that failed is forgotten."""
        self.is_attached = False
        if failed and self.prompt is not None and not self.is_compressed:
            self.reset()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new tokens to a layer; the first decoding step compresses the prompt."""
        self._require_attached()
        if key_states.requires_grad or value_states.requires_grad:
            raise RuntimeError("Expected inference, got keys that require gradients; use `torch.no_grad()`.")
        layer = self.layers[layer_idx]
        if isinstance(layer, MedaLayer):
            if layer.awaits_attention:
                self._raise_bypassed(layer_idx)
            if not self.is_compressed and layer.seq_length > 0:
                self.compress()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Returns the sizes of the mask that an uncompressed cache would need."""
        self._require_attached()
        return super().get_mask_sizes(query_length, layer_idx)

    def compress(self) -> None:
        """Compresses the prompt read so far, e.g. to ask many questions about one context.

        Raises:
            RuntimeError: if no prompt has been read, if it is compressed already, or if attention bypassed the cache.
        """
        if self.is_compressed or self.prompt is None:
            state = "it is compressed already" if self.is_compressed else "none has been read"
            raise RuntimeError(f"Expected a prompt that is not compressed yet, but {state}; see `MedaCache.reset`.")
        layers = self.managed_layers
        for index, layer in layers.items():
            if layer.prompt is not None:
                self._raise_bypassed(index)
        if self.compression.keep_ratio < 1:
            for row, seq_len in enumerate(self.prompt.token_mask.sum(dim=-1).tolist()):
                entropies = [layer.statistics[row].entropy for layer in layers.values()]
                self._allocations.append((entropies, *allocate_prompt(entropies, seq_len, self.compression)))
            for number, layer in enumerate(layers.values()):
                budgets = [budgets[number] for _, _, budgets in self._allocations]
                layer.compress(self.prompt, budgets)
        self.is_compressed = True

    def stats(self) -> CacheStats:
        """Returns what is stored and why, layer by layer; budgets and entropies are those of the prompts as read."""
        layers = []
        for number, (index, layer) in enumerate(self.managed_layers.items()):
            kept_text, kept_visual = self._count_kept(layer)
            layers.append(
                LayerStats(
                    layer_idx=index,
                    logical_length=layer.seq_length,
                    physical_length=layer.physical_length,
                    stored_bytes=sum(
                        t.numel() * t.element_size() for t in (layer.keys, layer.values) if t is not None
                    ),
                    allocated_bytes=layer.count_allocated_bytes(),
                    entropy=[entropies[number] for entropies, _, _ in self._allocations],
                    entropy_kind=layer.entropy_kinds,
                    weight=[weights[number] for _, weights, _ in self._allocations],
                    budget=[budgets[number] for _, _, budgets in self._allocations],
                    kept_text=kept_text,
                    kept_visual=kept_visual,
                )
            )
        return CacheStats(is_compressed=self.is_compressed, layers=layers)

    def _count_kept(self, layer: MedaLayer) -> tuple[list[float], list[float]]:
        """Returns for each row how many text and visual tokens of the prompt are kept, averaged over heads."""
        if self.prompt is None:
            return [], []
        visual_mask, token_mask = self.prompt.visual_mask, self.prompt.token_mask
        if layer.positions is None:
            visual = (visual_mask & token_mask).sum(dim=-1)
            return (token_mask.sum(dim=-1) - visual).float().tolist(), visual.float().tolist()
        positions = layer.positions.long()
        is_kept = positions >= 0
        is_visual = visual_mask.to(positions.device)[:, None].expand(-1, positions.shape[1], -1)
        kept_visual = (is_visual.gather(-1, positions.clamp(min=0)) & is_kept).sum(dim=-1).float()
        return (is_kept.sum(dim=-1) - kept_visual).mean(dim=-1).tolist(), kept_visual.mean(dim=-1).tolist()

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens, all of which must have come after the compression.

        Raises:
            ValueError: for a positive number, or if a token of the prompt would be removed.
        """
        prompt_length = 0 if self.prompt is None else self.prompt.seq_length
        if tokens_to_remove < 0 and self.get_seq_length() + tokens_to_remove < prompt_length:
            raise ValueError(
                f"Expected at most {self.get_seq_length() - prompt_length} tokens to remove, those that came after "
                f"the prompt, got {-tokens_to_remove}: evicted tokens can't be brought back; use `reset` "
                "and read again."
            )
        super().crop(tokens_to_remove)

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
        """Refuses assisted decoding, whose first forward mixes the prompt with candidate tokens."""
        raise NotImplementedError("MedaCache does not support assisted decoding or prompt lookup; use `DynamicCache`.")

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
