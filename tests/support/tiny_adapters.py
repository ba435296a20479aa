"""Tiny models of every family, and a config of every method."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from peft_ensemble import (
    AdaptFormerConfig,
    BitFitConfig,
    ConvPassConfig,
    DiffFitConfig,
    FacTConfig,
    HoulsbyConfig,
    PfeifferConfig,
    RepAdapterConfig,
    SharedLoraConfig,
    SSFConfig,
    VPTConfig,
)
from peft_ensemble.modeling_classifier import ClassTokenClassifier

# Weights large enough for a block to do something.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = {**SIZES, "intermediate_size": 64, "initializer_range": 0.2}
VISION = {"vision_config": WIDE, "num_labels": 5}
SCALED = {**SIZES, "mlp_ratio": 2, "layerscale_value": 0.7, "initializer_range": 0.2, "num_labels": 5}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**WIDE, num_labels=5)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**WIDE, num_labels=5)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**SCALED)),
    "dinov2_registers": lambda: Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(**SCALED, num_register_tokens=3)
    ),
    "dinov3": lambda: ClassTokenClassifier(DINOv3ViTModel(DINOv3ViTConfig(**WIDE, num_register_tokens=2)), 5),
    "clip": lambda: CLIPForImageClassification(CLIPConfig(**VISION)),
    "siglip": lambda: SiglipForImageClassification(SiglipConfig(**VISION)),
}
METHODS: dict[str, Callable[[], Any]] = {
    "adaptformer": lambda: AdaptFormerConfig(bottleneck=4),
    "bitfit": BitFitConfig,
    "convpass": lambda: ConvPassConfig(bottleneck=4),
    "difffit": DiffFitConfig,
    "fact_tk": lambda: FacTConfig(r=4, decomposition="tk"),
    "fact_tt": lambda: FacTConfig(r=4),
    "houlsby": lambda: HoulsbyConfig(bottleneck=4),
    "pfeiffer": lambda: PfeifferConfig(bottleneck=4),
    "repadapter": lambda: RepAdapterConfig(bottleneck=4),
    "shared_lora": lambda: SharedLoraConfig(r=4),
    "ssf": SSFConfig,
    "vpt_deep": lambda: VPTConfig(num_prompts=3, deep=True),
    "vpt_shallow": lambda: VPTConfig(num_prompts=3),
}
MERGEABLE = ("bitfit", "difffit", "fact_tk", "fact_tt", "repadapter", "shared_lora", "ssf")
STARTS_ELSEWHERE = ("houlsby", "ssf", "vpt_deep", "vpt_shallow")


@functools.cache
def build_family(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[name]().eval()
