"""Tiny vision transformers of random weights, one for each family, and golden weights in transformers' names."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
MLP = {**SMALL, "intermediate_size": 64}

BUILDERS: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**MLP)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**MLP)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, mlp_ratio=2)),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, num_register_tokens=3)
    ),
    "dinov3_vit": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**MLP, num_register_tokens=2)),
    "clip_vision_model": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**MLP)),
    "siglip_vision_model": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**MLP)),
    "siglip2_vision_model": lambda: transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(
            **{key: value for key, value in MLP.items() if key != "image_size"}, num_patches=16
        )
    ),
}


def build_vit(family: str, attention: str = "sdpa", seed: int = 0) -> Any:
    """A tiny model whose biases, norms and layer scales are not the neutral ones of a fresh model."""
    torch.manual_seed(seed)
    model = BUILDERS[family]().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.set_attn_implementation(attention)
    return model


def build_inputs(family: str, batch_size: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Images, as the family takes them; SigLIP 2 gets patches, the last of which are padding."""
    generator = torch.Generator().manual_seed(seed)
    if family != "siglip2_vision_model":
        return {"pixel_values": torch.randn(batch_size, 3, 32, 32, generator=generator)}
    return {
        "pixel_values": torch.randn(batch_size, 16, 3 * 8 * 8, generator=generator),
        "pixel_attention_mask": torch.tensor([[1] * 12 + [0] * 4] * batch_size),
        "spatial_shapes": torch.tensor([[3, 4]] * batch_size),
    }


def from_timm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of timm's ViT (fused query, key and value) under the names of `ViTModel`."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    inner = {
        "attn.proj": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    converted = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        if name in names:
            converted[names[name]] = value
        elif stem in names:
            converted[f"{names[stem]}.{kind}"] = value
        elif name.startswith("blocks."):
            _, index, part = stem.split(".", 2)
            if part == "attn.qkv":
                for letter, piece in zip("qkv", value.chunk(3), strict=True):
                    converted[f"layers.{index}.attention.{letter}_proj.{kind}"] = piece
            else:
                converted[f"layers.{index}.{inner[part]}.{kind}"] = value
    return converted
