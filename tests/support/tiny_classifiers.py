"""Tiny image classifiers of random weights, one of each family, and what they are fed."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

NUM_LABELS = 7
TOKENS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TOWER = {**TOKENS, "image_size": 32, "patch_size": 8}


class DinoV3Classifier(nn.Module):
    """A linear head on a backbone, as users write it where transformers has no classifier."""

    def __init__(self, config: tf.DINOv3ViTConfig):
        super().__init__()
        self.backbone = tf.DINOv3ViTModel(config)
        self.head = nn.Linear(config.hidden_size, NUM_LABELS)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.backbone(pixel_values).pooler_output)


def _labels(config: Any) -> Any:
    config.num_labels = NUM_LABELS
    return config


FAMILIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit": (
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**{**TOWER, "image_size": [32, 48]}, num_labels=NUM_LABELS)),
        "vit.layers.2.layernorm_before",
    ),
    "deit": (
        lambda: tf.DeiTForImageClassificationWithTeacher(tf.DeiTConfig(**TOWER, num_labels=NUM_LABELS)),
        "deit.layers.2.layernorm_before",
    ),
    "beit": (
        lambda: tf.BeitForImageClassification(
            tf.BeitConfig(**TOWER, use_absolute_position_embeddings=True, num_labels=NUM_LABELS)
        ),
        "beit.layers.2.layernorm_before",
    ),
    "dinov2": (
        lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**TOWER, num_labels=NUM_LABELS)),
        "dinov2.encoder.layer.2.norm1",
    ),
    "dinov2_with_registers": (
        lambda: tf.Dinov2WithRegistersForImageClassification(
            tf.Dinov2WithRegistersConfig(**TOWER, num_register_tokens=4, num_labels=NUM_LABELS)
        ),
        "dinov2_with_registers.encoder.layer.2.norm1",
    ),
    "dinov3": (
        lambda: DinoV3Classifier(tf.DINOv3ViTConfig(**TOWER, num_register_tokens=4)),
        "backbone.model.layer.2.norm1",
    ),
    "clip": (
        lambda: tf.CLIPForImageClassification(_labels(tf.CLIPConfig(vision_config=TOWER))),
        "vision_model.encoder.layers.2.layer_norm1",
    ),
    "siglip": (
        lambda: tf.SiglipForImageClassification(_labels(tf.SiglipConfig(vision_config=TOWER))),
        "vision_model.encoder.layers.2.layer_norm1",
    ),
    "swin": (
        lambda: tf.SwinForImageClassification(
            tf.SwinConfig(
                embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=2, image_size=32, patch_size=4,
                num_labels=NUM_LABELS,
            )
        ),
        "swin.encoder.layers.1",
    ),
    "convnext": (
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, num_labels=NUM_LABELS)
        ),
        "convnext.encoder.stages.1",
    ),
    "resnet": (
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(
                embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", num_labels=NUM_LABELS
            )
        ),
        "resnet.encoder.stages.1",
    ),
}  # fmt: skip
INTERPOLATES = {"deit", "siglip", "clip", "swin"}  # the others do so without being asked, or need not


def build(family: str) -> nn.Module:
    """A tiny model with weights large enough for classes to differ."""
    torch.manual_seed(0)
    model = FAMILIES[family][0]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.25)
    return model.eval()


def pixels(batch_size: int = 2, height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(seed))


def inputs(family: str, batch_size: int = 2) -> dict[str, Any]:
    """Non-square images, and what the family needs to accept them."""
    extra = {"interpolate_pos_encoding": True} if family in INTERPOLATES else {}
    return {"pixel_values": pixels(batch_size), **extra}
