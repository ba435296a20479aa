"""The pieces of the last attention: only what is asked for, in any precision, and no hook left behind."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from prompt_cam import PromptCAMConfig, get_prompt_cam_model
from prompt_cam.hooks import LayerInput
from prompt_cam.last_attention import AttentionParts, swapped_input
from support.tiny_vits import build_inputs, build_vit


def build_parts(scale: float = 1.0) -> tuple[AttentionParts, LayerInput, Any]:
    layer = build_vit("vit").layers[-1]
    for projection in (layer.attention.q_proj, layer.attention.k_proj):
        projection.weight.data *= scale
    tokens = torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(0))
    return AttentionParts(layer), LayerInput(tokens), layer


def test_large_scores_do_not_overflow_in_half_precision() -> None:
    parts, given, layer = build_parts(scale=800)
    rows = torch.tensor([[0, 3], [1, 4]])
    expected = parts.attend(given, rows)
    layer.half()
    half = LayerInput(given.hidden_states.half())
    x = parts.norm(half.hidden_states)
    projections = (layer.attention.q_proj, layer.attention.k_proj)
    queries, keys = (projection(x).unflatten(-1, (4, 8)).transpose(1, 2) for projection in projections)
    assert (queries @ keys.mT).isinf().any(), "the products have to be too large, or this shows nothing"
    found = parts.attend(half, rows)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95


def test_only_the_rows_asked_for_are_computed() -> None:
    model, inputs = get_prompt_cam_model(build_vit("vit"), PromptCAMConfig(num_classes=5)).eval(), build_inputs("vit")
    queried: list[int] = []
    projection = model.backbone.layers[-1].attention.q_proj
    projection.register_forward_hook(lambda module, args, output: queried.append(args[0].shape[1]))
    model.maps(**inputs, classes=[4, 1])
    assert queried == [5 + 1 + 16, 2]  # the forward pass, then two rows
    queried.clear()
    model.rank_heads(**inputs, classes=2)
    assert queried[:2] == [22, 1]
    assert set(queried[2:]) == {1}  # single tokens


def test_other_input_of_a_module_ends_with_the_context_and_with_errors() -> None:
    module, x = torch.nn.Identity(), torch.zeros(1)
    with swapped_input(module, torch.ones(1)):
        assert module(x).item() == 1
    assert module(x).item() == 0
    with pytest.raises(RuntimeError, match="meanwhile"), swapped_input(module, torch.ones(1)):
        raise RuntimeError("meanwhile")
    assert not module._forward_pre_hooks


def test_failure_in_the_tail_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = get_prompt_cam_model(build_vit("vit"), PromptCAMConfig(num_classes=5)).train(), build_inputs("vit")
    expected = model.rank_heads(**inputs, classes=2).removal_scores
    layer = model.backbone.layers[-1]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]

    def fail(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 1:
            raise RuntimeError("out of memory")
        return original(x)

    original = layer.mlp.forward
    with monkeypatch.context() as patch:
        patch.setattr(layer.mlp, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model.rank_heads(**inputs, classes=2)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.training
    assert_close(model.rank_heads(**inputs, classes=2).removal_scores, expected)
