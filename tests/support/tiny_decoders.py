"""Tiny random models of four families, each with a prompt of several images, and the oracle for evicted caches."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
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


def build_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**TEXT))


def build_llava() -> PreTrainedModel:
    vision_config = {"model_type": "clip_vision_model", "num_hidden_layers": 2, "projection_dim": 16, **VISION}
    config = LlavaConfig(
        vision_config=vision_config,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def build_idefics3() -> PreTrainedModel:
    config = Idefics3Config(
        vision_config={"num_hidden_layers": 2, **VISION},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config)


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
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


BUILDERS = {
    "llama": build_llama,
    "llava": build_llava,
    "idefics3": build_idefics3,
    "qwen2_5_vl": build_qwen2_5_vl,
}
TOKENS_PER_IMAGE = {"llama": 0, "llava": 16, "idefics3": 4, "qwen2_5_vl": 4}


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
                image = [IMAGE_TOKEN] * TOKENS_PER_IMAGE[self.name]
                image = [92, *image, 93] if self.name == "qwen2_5_vl" else image
                row += image + torch.randint(3, 90, (3,), generator=generator).tolist()
            rows.append(row + torch.randint(3, 90, (4,), generator=generator).tolist())
        length = max(map(len, rows))
        padded = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        inputs: dict[str, torch.Tensor] = {"input_ids": padded}
        inputs["attention_mask"] = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        num_images = sum(image_counts)
        if self.name == "llava":
            inputs["pixel_values"] = torch.randn(num_images, 3, 16, 16, generator=generator)
        elif self.name == "idefics3":
            inputs["pixel_values"] = torch.zeros(len(rows), max(image_counts), 3, 16, 16)
            for row, count in enumerate(image_counts):  # images that are all zero are dropped as padding
                inputs["pixel_values"][row, :count] = torch.randn(count, 3, 16, 16, generator=generator)
        elif self.name == "qwen2_5_vl":
            inputs["pixel_values"] = torch.randn(num_images * 16, 3 * 2 * 4 * 4, generator=generator)
            inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * num_images)
            inputs["mm_token_type_ids"] = (padded == IMAGE_TOKEN).int()
        return inputs


@functools.cache
def build_family(name: str) -> Family:
    """Returns the named family; the same seeded weights for every test."""
    torch.manual_seed(0)
    return Family(name, BUILDERS[name]().eval())


class MaskedFullCache(DynamicCache):
    """The oracle: keeps everything, and hides what another cache has evicted.

    Args:
        kept: for each layer the kept positions `(batch_size, num_key_value_heads, num_kept)`, -1 for none.
        prompt_length: length of the prompt, padding included.
    """

    def __init__(self, config: Any, kept: list[torch.Tensor], prompt_length: int):
        super().__init__(config=config)
        self.visible = []
        for positions in kept:
            visible = torch.zeros(*positions.shape[:2], prompt_length + 1, dtype=torch.bool)
            visible.scatter_(-1, torch.where(positions < 0, prompt_length, positions).long(), True)
            self.visible.append(visible[..., :-1])

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        is_decoding = self.layers[layer_idx].get_seq_length() > 0
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if is_decoding:
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
