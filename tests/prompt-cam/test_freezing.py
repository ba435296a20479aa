"""A backbone that models share comes back, from the last of them, as it came to the first."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification, get_prompt_cam_model
from prompt_cam.backbone import enable_checkpointing
from support.tiny_vits import BUILDERS, build_inputs, build_vit

CONFIG = PromptCAMConfig(num_classes=5)


def read_state(backbone: Any) -> dict[str, list[bool]]:
    return {
        "trained": [parameter.requires_grad for parameter in backbone.parameters()],
        "training": [module.training for module in backbone.modules()],
        "checkpointing": [getattr(module, "gradient_checkpointing", False) for module in backbone.modules()],
        "hooks": [bool(module._forward_pre_hooks or module._forward_hooks) for module in backbone.modules()],
    }


def build_uneven(family: str) -> Any:
    """A backbone half frozen and half in training mode, so that nothing can be restored by one switch."""
    backbone = build_vit(family)
    next(backbone.parameters()).requires_grad_(False)
    list(backbone.children())[-1].train()
    return backbone


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_detach_gives_back_modes_checkpointing_and_what_was_frozen(family: str, mode: bool) -> None:
    backbone = build_uneven(family)
    before = read_state(backbone)
    model = get_prompt_cam_model(backbone, CONFIG).train(mode)
    model.activation_checkpointing_enable()
    assert read_state(backbone) != before
    assert model.detach() is backbone
    assert read_state(backbone) == before
    assert model.detach() is backbone  # once more is no harm


def test_checkpointing_that_was_on_stays_on() -> None:
    backbone = build_vit("vit")
    enable_checkpointing(backbone, {"use_reentrant": False}, {})
    before = read_state(backbone)
    assert any(before["checkpointing"])
    get_prompt_cam_model(backbone, CONFIG).detach()
    assert read_state(backbone) == before


def test_loading_is_undone_too(tmp_path: Path) -> None:
    get_prompt_cam_model(build_vit("vit"), CONFIG).save_pretrained(tmp_path)
    backbone = build_vit("vit").train()
    before = read_state(backbone)
    loaded = PromptCAMForImageClassification.from_pretrained(tmp_path, backbone)
    assert not backbone.training  # a loaded model gives the same answer twice
    loaded.detach()
    assert read_state(backbone) == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-in-first-out", "last-in-first-out"])
def test_last_of_the_models_that_share_a_backbone_thaws_it(order: tuple[int, int]) -> None:
    backbone, inputs = build_uneven("vit"), build_inputs("vit")
    before = read_state(backbone)
    models = [get_prompt_cam_model(backbone, CONFIG).train() for _ in range(2)]
    models[order[0]].detach()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    models[order[1]](**inputs, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    models[order[1]].detach()
    assert read_state(backbone) == before


def test_backbone_is_taken_again_after_it_was_given_back() -> None:
    backbone = build_uneven("vit")
    before = read_state(backbone)
    for _ in range(2):
        get_prompt_cam_model(backbone, CONFIG).train().detach()
        assert read_state(backbone) == before


def test_deep_copy_gives_back_its_own_backbone() -> None:
    model = get_prompt_cam_model(build_uneven("vit"), CONFIG).eval()
    twin = copy.deepcopy(model)
    before = read_state(build_uneven("vit"))
    assert read_state(twin.detach()) == before
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert model(**build_inputs("vit")).logits.shape == (2, 5)
    assert read_state(model.detach()) == before
