"""A training step of the deep variant: 20 agnostic prompts in each layer, against as many as there are classes.

ViT-Ti/16 at 224 pixels, 2 images. With 20 classes both are the same model.
"""

from typing import Any

import torch
from transformers import ViTConfig, ViTModel

import harness
from prompt_cam import PromptCAMConfig, get_prompt_cam_model

AGNOSTIC = 20


def setup(classes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    backbone = ViTModel(config, add_pooling_layer=False)
    models = {
        name: get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=classes, num_agnostic_prompts=count)).train()
        for name, count in (("ours", AGNOSTIC), ("peer", None))
    }
    return {**models, "pixel_values": torch.randn(2, 3, 224, 224), "labels": torch.tensor([0, 1])}


def step(inputs: dict[str, Any], name: str) -> None:
    model = inputs[name]
    model.zero_grad()
    model(inputs["pixel_values"], labels=inputs["labels"]).loss.backward()


def check(inputs: dict[str, Any]) -> None:
    for name in ("ours", "peer"):
        step(inputs, name)
        trained = [p for p in inputs[name].parameters() if p.requires_grad]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained), name
    assert len(inputs["ours"].prompts["layer_0"]) == AGNOSTIC
    if len(inputs["peer"].prompts["layer_0"]) == AGNOSTIC:  # the same model: the same weights give the same logits
        ours, peer = (inputs[name].eval() for name in ("ours", "peer"))
        ours.load_state_dict(peer.state_dict())
        torch.testing.assert_close(*(model(inputs["pixel_values"]).logits for model in (ours, peer)))
        ours.train()
        peer.train()


CASE = harness.Timing(
    sizes=[{"classes": 20}, {"classes": 100}, {"classes": 200}],
    setup=setup,
    check=check,
    ours=lambda inputs: step(inputs, "ours"),
    peer=lambda inputs: step(inputs, "peer"),
    items=2,
    unit="images",
)
PLOT = None
