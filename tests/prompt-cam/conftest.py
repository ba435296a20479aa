"""The golden model of Prompt-CAM."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTModel

from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification
from support.tiny_vits import from_timm

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "promptcam_deep.golden.safetensors")


@pytest.fixture(scope="session")
def train_step() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "promptcam_deep.train_step.safetensors")


@pytest.fixture(scope="session")
def timm_weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "promptcam_deep.weights.safetensors")


def build_golden_vit(weights: dict[str, torch.Tensor], attention: str) -> Any:
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    vit = ViTModel(config, add_pooling_layer=False)
    vit.load_state_dict(from_timm(weights))
    vit.set_attn_implementation(attention)
    return vit.eval()


@pytest.fixture(params=["sdpa", "eager"])
def golden_model(request: pytest.FixtureRequest, timm_weights: dict[str, torch.Tensor]) -> Any:
    model = PromptCAMForImageClassification(
        build_golden_vit(timm_weights, request.param), PromptCAMConfig(num_classes=9, prompt_dropout=0)
    )
    prompts = timm_weights["vpt.prompt_embeddings"]
    own = {f"prompts.layer_{index}": prompt for index, prompt in enumerate(prompts)}
    own |= {name: timm_weights[name] for name in ("head.weight", "head.bias")}
    model.load_state_dict(own)
    return model.eval()


@pytest.fixture
def golden_vit(timm_weights: dict[str, torch.Tensor]) -> Any:
    return build_golden_vit(timm_weights, "sdpa")
