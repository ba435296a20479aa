"""Weight interpolation: ends, middle, BatchNorm, adapters, and models that do not fit."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from partial_tune import ClassPartition, LogitCalibrator, interpolate, interpolate_adapter
from support.partial_models import NAMES, build_lora_vit, build_resnet, build_vit, image_inputs


def tuned_copy(model: nn.Module) -> nn.Module:
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in tuned.named_buffers():
            buffer.fill_(5) if "num_batches" in name else buffer.add_(1)
    return tuned


def test_ends_are_the_models_and_the_middle_is_their_mean() -> None:
    source = build_resnet()
    tuned = tuned_copy(source)
    before = copy.deepcopy(source.state_dict()), copy.deepcopy(tuned.state_dict())
    for alpha in (0.0, 0.25, 1.0):
        mixed = interpolate(source, tuned, alpha).state_dict()
        for name, value in tuned.state_dict().items():
            old = before[0][name]
            expected = value if "num_batches" in name else (1 - alpha) * old + alpha * value
            torch.testing.assert_close(mixed[name], expected)
    for model, state in zip((source, tuned), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        interpolate(build_vit(), build_vit(id2label={0: "a", 1: "b"}, label2id=None), 0.5)
    with pytest.raises(ValueError, match=r"`alpha` in \[0, 1\], got 2"):
        interpolate(build_vit(), build_vit(), 2)
    with pytest.raises(ValueError, match="with LoRA adapters, got ViT"):
        interpolate_adapter(build_vit(), 0.5)
    with pytest.raises(ValueError, match=r"`alpha` in \[0, 1\]"):
        interpolate_adapter(build_lora_vit(), -0.1)


def test_calibrated_models_are_refused() -> None:
    source, tuned = build_vit(), build_vit()
    calibrator = LogitCalibrator(ClassPartition(NAMES, (0, 2, 3)), 1.0)
    calibrator.fold_(tuned)
    for pair in ((source, tuned), (tuned, source)):
        with pytest.raises(ValueError, match="folded into its head"):
            interpolate(*pair, 0.5)
    model = build_lora_vit()
    with calibrator.attach(model), pytest.raises(ValueError, match="is attached; detach it"):
        interpolate_adapter(model, 0.5)


@pytest.mark.parametrize(
    ("options", "message"), [({"use_dora": True}, "got DoRA"), ({"bias": "lora_only"}, "got trained biases")]
)
def test_adapters_that_do_not_scale_with_b_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate_adapter(build_lora_vit(**options), 0.5)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_scaled_adapter_is_the_interpolation_of_the_merged_weights(alpha: float) -> None:
    torch.manual_seed(0)
    model = build_lora_vit(init_lora_weights=False).eval()
    with torch.no_grad():
        for parameter in model.get_base_model().classifier.modules_to_save.parameters():
            parameter.add_(torch.randn_like(parameter))
    base = build_vit()
    base.load_state_dict(copy.deepcopy(model).unload().state_dict(), strict=False)
    base.classifier.load_state_dict(model.get_base_model().classifier.original_module.state_dict())
    merged = copy.deepcopy(model).merge_and_unload()
    expected = interpolate(base, merged, alpha).eval()(**image_inputs()).logits
    interpolate_adapter(model, alpha)
    torch.testing.assert_close(model(**image_inputs()).logits, expected, rtol=0, atol=1e-5)
