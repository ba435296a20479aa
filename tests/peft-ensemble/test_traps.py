"""What goes wrong with peft on vision models if nobody looks: each trap is closed, or says how to go around it."""

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model

from peft_ensemble import AdaptFormerConfig, MemberSpec, SSFConfig, find_structure, load_classifier
from peft_ensemble.fitting import build_member
from support.tiny_ensembles import LABEL_NAMES, save_backbones

PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbones(tmp_path_factory.mktemp("backbones"))[0]


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def build_two(backbone, config):
    """A model with adapters "default" and "second", and the logits of each."""
    model = get_peft_model(load_classifier(backbone, 3), config())
    randomize(model, 1)
    model.add_adapter("second", config())
    model.set_adapter("second")
    randomize(model, 2)
    second = model.eval()(PIXELS).logits
    model.set_adapter("default")
    return model, model(PIXELS).logits, second


def lora():
    return LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])


# 1. transformers 5 renamed modules.


def test_names_of_transformers_4_are_refused_with_those_of_the_model(backbone):
    spec = MemberSpec(backbone=backbone, method=LoraConfig(target_modules=["query", "value"]))
    with pytest.raises(
        ValueError, match=r"blocks have q_proj, k_proj, v_proj, o_proj, fc1, fc2, got .*'query'.*; name"
    ):
        build_member(spec, LABEL_NAMES)


@pytest.mark.parametrize(
    ("method", "wrapped"),
    [(LoraConfig(r=2), ["q_proj", "v_proj"]), (LNTuningConfig(), ["layernorm_before", "layernorm_after"])],
)
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # peft's own, about its own method
def test_places_of_peft_s_methods_are_found_by_structure(backbone, method, wrapped):
    model = build_member(MemberSpec(backbone=backbone, method=method), LABEL_NAMES)
    trained = {name.partition(".layers.0.")[2] for name, p in model.named_parameters() if p.requires_grad}
    for name in wrapped:
        assert any(name in part for part in trained)
    assert not any("k_proj" in part for part in trained)
    assert method.target_modules is None  # the spec is not touched


# 2. No task type for image classification: a new head would stay random, frozen and unsaved.


def test_peft_itself_leaves_the_head_frozen_and_members_do_not(backbone):
    config = LoraConfig(target_modules=["q_proj"])
    theirs = get_peft_model(load_classifier(backbone, 3), config)
    assert not any("classifier" in name for name, p in theirs.named_parameters() if p.requires_grad)
    ours = build_member(MemberSpec(backbone=backbone, method=config), LABEL_NAMES)
    assert any("classifier" in name for name, p in ours.named_parameters() if p.requires_grad)


# 3. Heads differ: test_modeling_classifier.py.

# 4. LN-tuning has one active adapter, and a model one head.


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_two_active_adapters_of_ln_tuning_are_refused(backbone):
    norms = [name for block in find_structure(load_classifier(backbone, 3)).blocks for name in block.norms]
    model, _, _ = build_two(backbone, lambda: LNTuningConfig(target_modules=norms))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="2 active adapters, but LN tuning"):
        model(PIXELS)
    with_heads, _, _ = build_two(
        backbone, lambda: LNTuningConfig(target_modules=norms, modules_to_save=["classifier"])
    )
    with pytest.raises(ValueError, match="Only one adapter can be set at a time"):
        with_heads.base_model.set_adapter(["default", "second"])


def test_two_adapters_with_heads_do_not_merge(backbone):
    model, first, _ = build_two(backbone, SSFConfig)
    for merge in (model.merge_and_unload, model.merge_adapter):
        for names in (["default", "second"], ["second"]):  # the second is not active: its head would be left behind
            with pytest.raises(ValueError, match=r"'second'\] has a head of its own; merge one of them, and make it"):
                merge(adapter_names=names)
    assert torch.equal(model(PIXELS).logits, first)
    torch.testing.assert_close(model.merge_and_unload(adapter_names=["default"])(PIXELS).logits, first)


# 5. Batches with an adapter for each image.


def test_mixed_batch_of_lora_takes_each_adapter_with_its_head_and_only_in_evaluation(backbone):
    model, first, second = build_two(backbone, lora)
    mixed = model(pixel_values=PIXELS, adapter_names=["default", "second", "default"]).logits
    torch.testing.assert_close(mixed, torch.stack([first[0], second[1], first[2]]))
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when the model is in training mode"):
        model.train()(pixel_values=PIXELS, adapter_names=["default", "second", "default"])


@pytest.mark.parametrize("config", [SSFConfig, AdaptFormerConfig])
def test_mixed_batch_of_our_methods_is_refused(backbone, config):
    # Without the refusal every image would silently get the active adapter.
    model, _, _ = build_two(backbone, config)
    with pytest.raises(ValueError, match=r"no adapter_names, .* one adapter for the whole batch; call `set_adapter`"):
        model(pixel_values=PIXELS, adapter_names=["default", "second", "default"])
