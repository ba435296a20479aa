"""A training step of the late variant on features kept from one pass, against a step of the deep variant on pixels.

ViT-Ti/16 at 224 pixels, 4 images. The one pass that computes the features costs about one forward and is left out.
"""

from typing import Any

import torch
from transformers import ViTConfig, ViTModel

import harness
from prompt_cam import PromptCAMConfig, get_prompt_cam_model


def setup(classes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    backbone = ViTModel(config, add_pooling_layer=False)
    late, deep = (
        get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=classes, variant=variant, prompt_dropout=0))
        for variant in ("late", "deep")
    )
    pixels, labels = torch.randn(4, 3, 224, 224), torch.tensor([0, 1, 2, 3])
    return {"late": late, "deep": deep, "pixels": pixels, "labels": labels, "features": late.features(pixels)}


def step_late(inputs: dict[str, Any]) -> None:
    inputs["late"].zero_grad()
    inputs["late"](hidden_states=inputs["features"], labels=inputs["labels"]).loss.backward()


def step_deep(inputs: dict[str, Any]) -> None:
    inputs["deep"].zero_grad()
    inputs["deep"](inputs["pixels"], labels=inputs["labels"]).loss.backward()


def check(inputs: dict[str, Any]) -> None:
    late = inputs["late"]
    step_late(inputs)
    kept = late.prompts["layer_11"].grad.clone()
    late.zero_grad()
    late(inputs["pixels"], labels=inputs["labels"]).loss.backward()
    torch.testing.assert_close(kept, late.prompts["layer_11"].grad, atol=1e-6, rtol=1e-4)


CASE = harness.Timing(
    sizes=[{"classes": 20}, {"classes": 200}],
    setup=setup,
    check=check,
    ours=step_late,
    peer=step_deep,
    items=4,
    unit="images",
)
PLOT = None
