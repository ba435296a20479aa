"""What holds for every method on every family: exact counts, identity, gradients, save and load, merge, switching."""

import copy
import functools

import pytest
import torch
from peft import LNTuningConfig, PeftModel, get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

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
    find_structure,
)
from support.tiny_adapters import FAMILIES, MERGEABLE, METHODS, STARTS_ELSEWHERE

each_method = pytest.mark.parametrize("method", METHODS)
each_family = pytest.mark.parametrize("family", FAMILIES)
NOT_MERGEABLE = sorted(set(METHODS) - set(MERGEABLE))


def logits(model, pixel_values):
    with torch.no_grad():
        return model(pixel_values=pixel_values).logits


def randomize(model, seed=0, std=0.1):
    """Moves every trained parameter, so that an adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# Parameter counts of the study on ViT-B/16 (spec 4.2), the head left out.


@functools.cache
def vit_base():
    with torch.device("meta"):
        return ViTForImageClassification(ViTConfig(num_labels=5))


COUNTS = [
    (BitFitConfig(), 102_912),
    (DiffFitConfig(), 140_544),
    (SSFConfig(), 205_824),
    (VPTConfig(num_prompts=50), 50 * 768),
    (VPTConfig(num_prompts=50, deep=True), 50 * 768 * 12),
    (SharedLoraConfig(r=8), 36_864 * 8),
    (AdaptFormerConfig(bottleneck=32), 599_424),
    (AdaptFormerConfig(bottleneck=4), 18_444 * 4 + 9_216),
    (PfeifferConfig(bottleneck=16), 18_444 * 16 + 9_216),
    (HoulsbyConfig(bottleneck=8), 313_536),
    (RepAdapterConfig(bottleneck=16), 461_184),
    (ConvPassConfig(bottleneck=8), 327_552),
    (FacTConfig(r=16), 2 * 768 * 16 + 144 * 16**2),
    (FacTConfig(r=16, decomposition="tk"), 2 * 768 * 16 + 16**3 + 144 * 16),
]


@pytest.mark.parametrize(("config", "count"), COUNTS, ids=lambda value: getattr(value, "name", value))
def test_parameter_count_is_the_published_one(config, count):
    model = get_peft_model(copy.deepcopy(vit_base()), config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = sum(p.numel() for name, p in trained.items() if "classifier" in name)
    assert head == 768 * 5 + 5
    assert sum(p.numel() for p in trained.values()) - head == count


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # peft's own, about its own method
def test_ln_tuning_of_peft_has_the_published_count_on_our_norms():
    model = copy.deepcopy(vit_base())
    structure = find_structure(model)
    norms = [name for block in structure.blocks for name in block.norms] + list(structure.outer_norms())
    tuned = get_peft_model(model, LNTuningConfig(target_modules=norms))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == 38_400


# Behaviour, all methods on all families.


@each_family
@each_method
def test_starts_as_the_pre_trained_model(build_model, pixel_values, method, family):
    model = build_model(family)
    expected = logits(model, pixel_values)
    actual = logits(get_peft_model(model, METHODS[method]()).eval(), pixel_values)
    if method in STARTS_ELSEWHERE:
        assert 1e-4 < (actual - expected).abs().max() < 2
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@each_family
@each_method
def test_every_trained_parameter_gets_a_gradient_and_no_other(build_model, pixel_values, method, family):
    # A parameter without a gradient would also stop DistributedDataParallel.
    model = randomize(get_peft_model(build_model(family), METHODS[method]())).train()
    model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == with_gradient
    assert any("classifier" in name for name in trained)
    assert all("vis_" in name or "classifier" in name for name in trained)


@each_family
@each_method
def test_saved_adapter_gives_the_same_logits_in_a_new_model(build_model, pixel_values, method, family, tmp_path):
    model = randomize(get_peft_model(build_model(family), METHODS[method]()))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(build_model(family), tmp_path, adapter_name="another").eval()
    assert torch.equal(logits(loaded, pixel_values), logits(model, pixel_values))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@each_family
@pytest.mark.parametrize("method", MERGEABLE)
def test_merged_model_is_plain_and_gives_the_same_logits(build_model, pixel_values, method, family):
    model = randomize(get_peft_model(build_model(family), METHODS[method]()))
    expected = logits(model, pixel_values)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, pixel_values), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert torch.equal(logits(model, pixel_values), expected)
    merged = model.merge_and_unload()
    assert [type(module) for module in merged.modules()] == [type(module) for module in build_model(family).modules()]
    torch.testing.assert_close(logits(merged, pixel_values), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", NOT_MERGEABLE)
def test_methods_that_cannot_merge_say_why_and_stay_whole(build_model, pixel_values, method):
    model = randomize(get_peft_model(build_model("vit"), METHODS[method]()))
    expected = logits(model, pixel_values)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match=r"cannot be merged: .*Keep the adapter"):
            merge()
    assert torch.equal(logits(model, pixel_values), expected)
    base = model.unload()
    assert [type(module) for module in base.modules()] == [type(module) for module in build_model("vit").modules()]


@each_family
@each_method
def test_disabled_adapter_is_the_base_model(build_model, pixel_values, method, family):
    base = build_model(family)
    expected = logits(base, pixel_values)
    model = randomize(get_peft_model(base, METHODS[method]()))
    tuned = logits(model, pixel_values)
    with model.disable_adapter():
        assert torch.equal(logits(model, pixel_values), expected)
    assert torch.equal(logits(model, pixel_values), tuned)
    assert not torch.allclose(tuned, expected, atol=1e-3)


@each_method
def test_two_adapters_are_switched_and_deleted(build_model, pixel_values, method):
    model = randomize(get_peft_model(build_model("dinov2"), METHODS[method]()), seed=1)
    first = logits(model, pixel_values)
    model.add_adapter("second", METHODS[method]())
    model.set_adapter("second")
    second = logits(randomize(model, seed=2), pixel_values)
    assert not torch.allclose(first, second, atol=1e-3)
    model.set_adapter("default")
    assert torch.equal(logits(model, pixel_values), first)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(logits(model, pixel_values), second)
    assert not any(".default" in name for name in model.state_dict())


@each_family
@each_method
def test_add_adapter_and_load_adapter_of_transformers(build_model, pixel_values, method, family, tmp_path):
    model = build_model(family)
    model.add_adapter(METHODS[method]())
    expected = logits(randomize(model), pixel_values)
    model.save_pretrained(tmp_path)
    loaded = build_model(family)
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(logits(loaded.eval(), pixel_values), expected)


@each_method
def test_gradient_checkpointing_changes_no_gradient(build_model, pixel_values, method):
    gradients = []
    for checkpointing in (False, True):
        base = build_model("dinov2")
        torch.manual_seed(0)
        model = randomize(get_peft_model(base, METHODS[method]())).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0
        if checkpointing:
            base = model.base_model.model
            new_name = hasattr(base, "activation_checkpointing_enable")  # transformers 5.23; older ones have the other
            enable = base.activation_checkpointing_enable if new_name else base.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model(pixel_values=pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@each_method
def test_bfloat16_base_keeps_adapters_in_float32_and_output_in_bfloat16(build_model, pixel_values, method):
    model = get_peft_model(build_model("dinov2").bfloat16(), METHODS[method]())
    parts = [p for name, p in model.named_parameters() if "vis_" in name]
    assert {p.dtype for p in parts} == {torch.float32}
    output = randomize(model, std=0.02)(pixel_values=pixel_values.bfloat16(), labels=torch.tensor([0, 1, 2, 3]))
    output.loss.backward()
    assert output.logits.dtype is torch.bfloat16 or family_head_in_float32(model)
    reference = randomize(get_peft_model(build_model("dinov2"), METHODS[method]()), std=0.02)
    assert all(torch.isfinite(p.grad).all() for p in parts)
    assert output.logits.shape == logits(reference, pixel_values).shape


def family_head_in_float32(model):
    """peft casts trained copies of modules_to_save to float32 as well."""
    return next(p for name, p in model.named_parameters() if "modules_to_save" in name).dtype is torch.float32


@each_method
def test_autocast_is_close_to_float32(build_model, pixel_values, method):
    model = randomize(get_peft_model(build_model("vit"), METHODS[method]()), std=0.02)
    expected = logits(model, pixel_values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = logits(model, pixel_values).float()
    assert (actual - expected).norm() / expected.norm() < 0.05


@each_method
def test_dropout_acts_in_training_only(build_model, pixel_values, method):
    if method in ("bitfit", "difffit", "ssf"):
        pytest.skip("has no dropout")
    config = METHODS[method]()
    config.dropout = 0.5
    model = randomize(get_peft_model(build_model("vit"), config))
    assert torch.equal(logits(model, pixel_values), logits(model, pixel_values))
    model.train()
    assert not torch.equal(logits(model, pixel_values), logits(model, pixel_values))


@each_method
def test_chosen_blocks_leave_what_is_before_them_alone(build_model, pixel_values, method):
    config = METHODS[method]()
    config.blocks = [1]
    model = build_model("vit")
    seen = []
    model.vit.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    logits(model, pixel_values)
    tuned = randomize(get_peft_model(model, config))
    logits(tuned, pixel_values)
    assert torch.equal(seen[0], seen[1])
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad and "vis_" in name}
    assert trained
    assert not any("layers.0." in name or "embeddings" in name for name in trained)


@pytest.mark.parametrize("blocks", [[2], [-1], []])
def test_blocks_that_are_not_there_are_refused(build_model, blocks):
    with pytest.raises(ValueError, match="blocks must be numbers from 0 to 1"):
        get_peft_model(build_model("vit"), SSFConfig(blocks=blocks))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HoulsbyConfig(bottleneck=0), "bottleneck must be a positive integer, got 0"),
        (lambda: AdaptFormerConfig(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: RepAdapterConfig(bottleneck=3), "bottleneck must be even"),
        (lambda: SSFConfig(init_std=-1), "init_std must be at least 0"),
        (lambda: ConvPassConfig(init="zeros"), "init must be 'identity' or 'xavier'"),
        (lambda: FacTConfig(decomposition="cp"), "decomposition must be 'tt' or 'tk'"),
        (lambda: VPTConfig(deep=True, legacy_strip=True), "legacy_strip is about shallow prompts"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_head_is_trained_and_saved_without_asking_and_left_alone_when_told(build_model):
    assert get_peft_model(build_model("clip"), SSFConfig()).peft_config["default"].modules_to_save == ["classifier"]
    model = get_peft_model(build_model("clip"), SSFConfig(modules_to_save=[]))
    assert not any("classifier" in name for name, p in model.named_parameters() if p.requires_grad)


def test_headless_model_has_no_head_to_save(build_model):
    model = get_peft_model(build_model("vit").vit, SSFConfig())
    assert model.peft_config["default"].modules_to_save is None
