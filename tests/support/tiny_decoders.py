"""Tiny random models of many families, each with a prompt of several images, and the oracle for evicted caches."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMAGE_TOKEN = 90
TEXT = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


CLIP = {"model_type": "clip_vision_model", "num_hidden_layers": 2, "projection_dim": 16, **VISION}
SIGLIP = {"model_type": "siglip_vision_model", "num_hidden_layers": 2, "vision_use_head": False, **VISION}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
QWEN_IDS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}


def build_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**TEXT))


def build_mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**TEXT, sliding_window=None))


def build_qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**TEXT, head_dim=8))


def build_llava() -> PreTrainedModel:
    config = LlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def build_llava_next() -> PreTrainedModel:
    config = LlavaNextConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    return LlavaNextForConditionalGeneration(config)


def build_llava_onevision() -> PreTrainedModel:
    config = LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=IMAGE_TOKEN,
        video_token_index=91,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    return LlavaOnevisionForConditionalGeneration(config)


def build_idefics3() -> PreTrainedModel:
    config = Idefics3Config(
        vision_config={"num_hidden_layers": 2, **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config)


def build_smolvlm() -> PreTrainedModel:
    config = SmolVLMConfig(
        vision_config={"num_hidden_layers": 2, **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    return SmolVLMForConditionalGeneration(config)


def build_internvl() -> PreTrainedModel:
    config = InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            "num_hidden_layers": 2,
            **VISION,
            "image_size": [16, 16],
            "patch_size": [4, 4],
        },
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config)


def build_gemma3() -> PreTrainedModel:
    """Sliding and full layers in turn, and images whose tokens see one another both ways."""
    config = Gemma3Config(
        vision_config=SIGLIP,
        text_config={
            **TEXT,
            "head_dim": 8,
            "num_hidden_layers": 6,
            "sliding_window": 16,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"] * 2,
        },
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=92,
        eoi_token_index=93,
    )
    return Gemma3ForConditionalGeneration(config)


def build_paligemma() -> PreTrainedModel:
    """The whole prompt sees the whole prompt."""
    config = PaliGemmaConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "gemma", **TEXT, "head_dim": 8},
        image_token_index=IMAGE_TOKEN,
        projection_dim=48,
    )
    return PaliGemmaForConditionalGeneration(config)


def build_qwen2_vl() -> PreTrainedModel:
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "mlp_ratio": 2,
        },
        text_config={**TEXT, "rope_parameters": MROPE},
        **QWEN_IDS,
    )
    return Qwen2VLForConditionalGeneration(config)


def build_qwen2_5_vl() -> PreTrainedModel:
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 48,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": MROPE},
        **QWEN_IDS,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_qwen3_vl() -> PreTrainedModel:
    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config={**TEXT, "head_dim": 8, "rope_parameters": MROPE},
        **QWEN_IDS,
    )
    return Qwen3VLForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    name.removeprefix("build_"): function for name, function in list(globals().items()) if name.startswith("build_")
}
TOKENS_PER_IMAGE = {
    "llava": 16,
    "llava_next": 16 + 32 + 4,  # the whole image, two tiles of it, and the end of each row
    "llava_onevision": 16 + 32 + 4,
    "idefics3": 4,
    "smolvlm": 4,
    "internvl": 4,
    "gemma3": 4,
    "paligemma": 16,
    "qwen2_vl": 4,
    "qwen2_5_vl": 4,
    "qwen3_vl": 4,
}
TEXT_ONLY = tuple(name for name in BUILDERS if name not in TOKENS_PER_IMAGE)
FIND_POSITIONS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # of a prompt with images, by themselves
WITH_MARKERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")  # ids 92 and 93 around an image


@dataclass
class Family:
    """A tiny model with a function that makes prompts for it."""

    name: str
    model: PreTrainedModel

    def prompts(self, *image_counts: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Returns left-padded inputs, one row per number of images, with a text of its own length around them."""
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for number, count in enumerate(image_counts):
            row = torch.randint(3, 90, (5 + number,), generator=generator).tolist()
            for _ in range(count):
                image = [IMAGE_TOKEN] * TOKENS_PER_IMAGE.get(self.name, 0)
                image = [92, *image, 93] if self.name in WITH_MARKERS else image
                row += image + torch.randint(3, 90, (3,), generator=generator).tolist()
            rows.append(row + torch.randint(3, 90, (4,), generator=generator).tolist())
        length = max(map(len, rows))
        padded = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        inputs: dict[str, torch.Tensor] = {"input_ids": padded}
        inputs["attention_mask"] = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        if "qwen" in self.name and "vl" in self.name:
            inputs["mm_token_type_ids"] = (padded == IMAGE_TOKEN).int()
        elif self.name in ("gemma3", "paligemma"):
            inputs["token_type_ids"] = (padded == IMAGE_TOKEN).int() * (self.name == "gemma3")
        return inputs | self._images(image_counts, generator)

    def _images(self, image_counts: tuple[int, ...], generator: torch.Generator) -> dict[str, torch.Tensor]:
        total = sum(image_counts)
        if self.name in TEXT_ONLY or total == 0:
            return {}
        if "qwen" in self.name:
            grids = torch.tensor([[1, 4, 4]] * total)
            return {
                "pixel_values": torch.randn(total * 16, 3 * 2 * 4 * 4, generator=generator),
                "image_grid_thw": grids,
            }
        if self.name in ("llava_next", "llava_onevision"):
            sizes = torch.tensor([[16, 32]] * total)
            return {"pixel_values": torch.randn(total, 3, 3, 16, 16, generator=generator), "image_sizes": sizes}
        if self.name in ("idefics3", "smolvlm"):  # images that are all zero are dropped as padding
            pixels = torch.zeros(len(image_counts), max(image_counts), 3, 16, 16)
            for row, count in enumerate(image_counts):
                pixels[row, :count] = torch.randn(count, 3, 16, 16, generator=generator)
            return {"pixel_values": pixels}
        return {"pixel_values": torch.randn(total, 3, 16, 16, generator=generator)}


@functools.cache
def build_family(name: str) -> Family:
    """Returns the named family; the same seeded weights for every test."""
    torch.manual_seed(0)
    return Family(name, BUILDERS[name]().eval())


class MaskedFullCache(DynamicCache):
    """The oracle: keeps everything, and hides what another cache has evicted.

    Args:
        kept: by layer the kept positions `(batch_size, num_key_value_heads, num_kept)`, -1 for none.
        prompt_length: length of the prompt, padding included.
    """

    def __init__(self, config: Any, kept: dict[int, torch.Tensor], prompt_length: int):
        super().__init__(config=config)
        self.visible = {}
        for layer_idx, positions in kept.items():
            visible = torch.zeros(*positions.shape[:2], prompt_length + 1, dtype=torch.bool)
            visible.scatter_(-1, torch.where(positions < 0, prompt_length, positions).long(), True)
            self.visible[layer_idx] = visible[..., :-1]

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        is_decoding = self.layers[layer_idx].get_seq_length() > 0
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if is_decoding and layer_idx in self.visible:
            keys = keys.view_as(keys)
            keys.visible = self.visible[layer_idx]
        return keys, values


def oracle_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """sdpa with the slots hidden that the oracle's cache names."""
    visible = getattr(key, "visible", None)
    if visible is not None:
        num_queries, num_new = query.shape[2], key.shape[2] - visible.shape[2]
        causal = torch.ones(num_queries, num_new, dtype=torch.bool).tril(num_new - num_queries)
        visible = visible[:, :, None].expand(-1, -1, num_queries, -1)
        mask = torch.cat([visible, causal.expand(*visible.shape[:2], -1, -1)], dim=-1)
        attention_mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("oracle", oracle_attention)
AttentionMaskInterface.register("oracle", sdpa_mask)


@torch.no_grad()
def run_steps(
    family: Family, inputs: dict[str, torch.Tensor], cache: Any, steps: torch.Tensor, chunk: int
) -> list[torch.Tensor]:
    """Returns the logits of the prompt's last token and of every step that feeds `chunk` tokens of `steps`.

    Between prompt and steps a cache that can be compressed is.
    """
    model, mask = family.model, inputs["attention_mask"]
    finds_positions = family.name in FIND_POSITIONS
    positions = {} if finds_positions else {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
    output = model(**inputs, **positions, past_key_values=cache, use_cache=True)
    if hasattr(cache, "compress"):
        cache.compress()
    logits = [output.logits[:, -1:]]
    for start in range(0, steps.shape[1], chunk):
        tokens = steps[:, start : start + chunk]
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        position_ids = mask.cumsum(dim=1)[:, -tokens.shape[1] :] - 1
        if finds_positions:
            position_ids = (position_ids + model.model.rope_deltas).expand(3, -1, -1)
        output = model(input_ids=tokens, attention_mask=mask, position_ids=position_ids, past_key_values=cache)
        logits.append(output.logits)
    return logits
