"""Epochs of the late variant, with the pass that computes its features, against as many of the deep variant on pixels.

ViT-Ti/16 at 224 pixels, epochs of one batch of 2 images, which is what an epoch of many is made of.
"""

from typing import Any

import torch
from transformers import ViTConfig, ViTModel

import harness
from prompt_cam import PromptCAMConfig, get_prompt_cam_model

IMAGES = 2


def setup(classes: int, epochs: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    backbone = ViTModel(config, add_pooling_layer=False)
    late, deep = (
        get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=classes, variant=variant, prompt_dropout=0))
        for variant in ("late", "deep")
    )
    pixels, labels = torch.randn(IMAGES, 3, 224, 224), torch.arange(IMAGES)
    return {"late": late, "deep": deep, "pixels": pixels, "labels": labels, "epochs": epochs}


def train_late(inputs: dict[str, Any]) -> None:
    features = inputs["late"].features(inputs["pixels"])
    for _ in range(inputs["epochs"]):
        inputs["late"].zero_grad()
        inputs["late"](hidden_states=features, labels=inputs["labels"]).loss.backward()


def train_deep(inputs: dict[str, Any]) -> None:
    for _ in range(inputs["epochs"]):
        inputs["deep"].zero_grad()
        inputs["deep"](inputs["pixels"], labels=inputs["labels"]).loss.backward()


def check(inputs: dict[str, Any]) -> None:
    late = inputs["late"]
    train_late(inputs)
    kept = late.prompts["layer_11"].grad.clone()
    late.zero_grad()
    late(inputs["pixels"], labels=inputs["labels"]).loss.backward()
    torch.testing.assert_close(kept, late.prompts["layer_11"].grad, atol=1e-6, rtol=1e-4)


CASE = harness.Timing(
    sizes=[{"classes": 20, "epochs": 1}, {"classes": 20, "epochs": 10}, {"classes": 200, "epochs": 10}],
    setup=setup,
    check=check,
    ours=train_late,
    peer=train_deep,
    items=IMAGES,
    unit="images",
)
PLOT = None
