"""What the package takes for granted in transformers' models, and which of them it refuses."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from prompt_cam import PromptCAMConfig, get_prompt_cam_model
from prompt_cam.backbone import FAMILIES, REFUSED, Backbone, find_vision_model
from prompt_cam.last_attention import AttentionParts
from support.tiny_vits import BUILDERS, MLP, build_vit


def test_every_family_is_tested() -> None:
    assert set(FAMILIES) == set(BUILDERS)


@pytest.mark.parametrize("family", BUILDERS)
def test_names_are_those_of_the_installed_transformers(family: str) -> None:
    """A canary: a new version that renames layers, norms or projections fails here first."""
    model = build_vit(family)
    assert model.config.model_type == family
    assert find_vision_model(model) is model
    view = Backbone(model)
    assert len(view.layers) == 3
    assert isinstance(view.final_norm, nn.LayerNorm)
    for layer in view.layers:
        parts = AttentionParts(layer)
        assert (parts.num_heads, parts.scaling) == (4, 8**-0.5)
        assert {"q_proj", "k_proj", "v_proj"} <= {name for name, _ in parts.attention.named_children()}
        assert isinstance(parts.output, nn.Linear)


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_types_exist(model_type: str) -> None:
    assert model_type in transformers.CONFIG_MAPPING


BUILD_REFUSED = {
    "swin": (
        lambda: transformers.SwinModel(transformers.SwinConfig(embed_dim=8, depths=[1], num_heads=[1])),
        "window",
    ),
    "beit": (lambda: transformers.BeitModel(transformers.BeitConfig(**MLP)), "relative position bias"),
    "sam": (
        lambda: transformers.SamVisionModel(transformers.SamVisionConfig(**{**MLP, "global_attn_indexes": [1]})),
        "window",
    ),
    "resnet": (lambda: transformers.ResNetModel(transformers.ResNetConfig(depths=[1] * 4)), "dinov3_vit"),
}


@pytest.mark.parametrize(("build", "reason"), BUILD_REFUSED.values(), ids=BUILD_REFUSED)
def test_refused_backbones_get_the_reason(build: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        get_prompt_cam_model(build(), PromptCAMConfig(num_classes=5))


def test_models_of_other_libraries_are_refused() -> None:
    with pytest.raises(TypeError, match="transformers"):
        get_prompt_cam_model(nn.Linear(2, 2), PromptCAMConfig(num_classes=5))


def build_clip() -> Any:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=MLP))


def build_siglip() -> Any:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=MLP))


@pytest.mark.parametrize("build", [build_clip, build_siglip], ids=["clip", "siglip"])
def test_vision_part_of_a_larger_model_is_found(build: Any, tmp_path: Any) -> None:
    build().eval().save_pretrained(tmp_path / "whole")
    whole = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    model = get_prompt_cam_model(whole, PromptCAMConfig(num_classes=5)).eval()
    assert model.backbone is whole.vision_model
    pixels = torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path / "adapter")
    loaded = type(model).from_pretrained(tmp_path / "adapter")  # the adapter names the larger model
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_vision_transformer_under_a_classifier_is_found() -> None:
    whole = transformers.ViTForImageClassification(transformers.ViTConfig(**MLP))
    assert get_prompt_cam_model(whole, PromptCAMConfig(num_classes=5)).backbone is whole.vit
