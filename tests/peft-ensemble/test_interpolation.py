"""The path between pre-trained and tuned weights: both ends exact, LoRA as scaled weights, VPT refused."""

import pytest
import torch
from peft import LNTuningConfig, LoHaConfig, LoraConfig, get_peft_model

from peft_ensemble import find_structure, interpolate, mix_outputs, wise_curve
from support.tiny_adapters import MERGEABLE, METHODS

PATHS = {name: config for name, config in METHODS.items() if not name.startswith("vpt")}
PATHS["lora"] = lambda: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])


def tune(model, config):
    torch.manual_seed(0)
    tuned = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return tuned


def logits(model, pixel_values):
    with torch.no_grad():
        return model(pixel_values=pixel_values).logits


@pytest.mark.parametrize("method", PATHS)
def test_ends_are_the_base_and_the_tuned_model_bit_for_bit(build_model, pixel_values, method):
    base = logits(build_model("dinov2"), pixel_values)
    model = tune(build_model("dinov2"), PATHS[method]())
    tuned = logits(model, pixel_values)
    with interpolate(model, 0.0):
        assert torch.equal(logits(model, pixel_values), base)
    with interpolate(model, 1.0):
        assert torch.equal(logits(model, pixel_values), tuned)
    with interpolate(model, 0.5):
        middle = logits(model, pixel_values)
    assert not torch.allclose(middle, base)
    assert not torch.allclose(middle, tuned)
    assert torch.equal(logits(model, pixel_values), tuned)


@pytest.mark.parametrize("method", sorted({*MERGEABLE, "lora"} - {"difffit", "ssf"}))
def test_methods_linear_in_the_weights_interpolate_the_merged_weights(build_model, pixel_values, method):
    base = build_model("vit").state_dict()
    model = tune(build_model("vit"), PATHS[method]())
    with interpolate(model, 0.3):
        actual = logits(model, pixel_values)
    merged = model.merge_and_unload()
    mixed = {name: 0.7 * base[name] + 0.3 * value for name, value in merged.state_dict().items()}
    merged.load_state_dict(mixed)
    torch.testing.assert_close(actual, logits(merged, pixel_values), rtol=1e-4, atol=1e-4)


def test_ssf_fades_scale_and_shift(build_model):
    model = tune(build_model("vit"), METHODS["ssf"]())
    layer = model.base_model.model.vit.layers[0].mlp.fc1
    scale, shift = layer.vis_ssf_scale["default"].clone(), layer.vis_ssf_shift["default"].clone()
    with interpolate(model, 0.25):
        torch.testing.assert_close(layer.vis_ssf_scale["default"], 1 + 0.25 * (scale - 1))
        torch.testing.assert_close(layer.vis_ssf_shift["default"], 0.25 * shift)


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # peft's own, about its own method
def test_ln_tuning_of_peft(build_model, pixel_values):
    model = build_model("vit")
    base = logits(model, pixel_values)
    norms = [name for block in find_structure(model).blocks for name in block.norms]
    tuned = tune(model, LNTuningConfig(target_modules=norms, modules_to_save=["classifier"]))
    with interpolate(tuned, 0.0):
        torch.testing.assert_close(logits(tuned, pixel_values), base, rtol=0, atol=0)


def test_given_head_takes_the_place_of_the_old_one(build_model, pixel_values):
    model = tune(build_model("vit"), METHODS["bitfit"]())
    zero = {"weight": torch.zeros(5, 32), "bias": torch.arange(5.0)}
    with interpolate(model, 0.0, head0=zero):
        assert torch.equal(logits(model, pixel_values), torch.arange(5.0).expand(4, 5))
    with pytest.raises(ValueError, match="expected head0 with parameters"), interpolate(model, 0.0, head0={}):
        pass
    with (
        pytest.raises(ValueError, match="expected head0 with parameters"),
        interpolate(model, 0.0, head0={"weight": zero["weight"]}),
    ):
        pass


def test_weights_come_back_after_an_exception(build_model, pixel_values):
    model = tune(build_model("vit"), METHODS["fact_tk"]())
    before = logits(model, pixel_values)
    with pytest.raises(RuntimeError), interpolate(model, 0.0):
        raise RuntimeError
    assert torch.equal(logits(model, pixel_values), before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (METHODS["vpt_deep"], "VPT has no path in weight space"),
        (lambda: LoHaConfig(target_modules=["q_proj"]), "no path in weight space is known for LoHaLayer|for Linear"),
    ],
)
def test_methods_without_a_path_are_refused(build_model, config, message):
    with pytest.raises(ValueError, match=message), interpolate(tune(build_model("vit"), config()), 0.5):
        pass


def test_merged_and_missing_adapters_are_refused(build_model):
    model = tune(build_model("vit"), METHODS["ssf"]())
    with pytest.raises(ValueError, match="with an adapter 'other', found none"), interpolate(model, 0.5, "other"):
        pass
    model.merge_adapter()
    with pytest.raises(ValueError, match="is merged; call"), interpolate(model, 0.5):
        pass


def test_mixed_outputs_of_vpt(build_model, pixel_values):
    base = logits(build_model("vit"), pixel_values).softmax(-1)
    model = tune(build_model("vit"), METHODS["vpt_shallow"]())
    tuned = logits(model, pixel_values).softmax(-1)
    for alpha in (0.0, 0.25, 1.0):
        expected = (1 - alpha) * base + alpha * tuned
        torch.testing.assert_close(mix_outputs(model, alpha, pixel_values=pixel_values), expected)


def test_curve_evaluates_each_alpha(build_model, pixel_values):
    model = tune(build_model("vit"), METHODS["adaptformer"]())
    tuned = logits(model, pixel_values)
    distance = lambda model: {"distance": (logits(model, pixel_values) - tuned).norm().item()}  # noqa: E731
    curve = wise_curve(model, [0, 0.5, 1], distance)
    assert [row["alpha"] for row in curve] == [0.0, 0.5, 1.0]
    assert curve[0]["distance"] > curve[1]["distance"] > curve[2]["distance"] == 0
