"""Branches are dropped whole, for each image by itself, in training only, adapters with them."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from peft_ensemble import AdaptFormerConfig, ConvPassConfig, MemberSpec, SSFConfig
from peft_ensemble.drop_path import add_drop_path
from peft_ensemble.fitting import build_member
from support.tiny_ensembles import LABEL_NAMES, save_backbones


@pytest.mark.parametrize("config", [AdaptFormerConfig(bottleneck=4), ConvPassConfig(bottleneck=4), SSFConfig()])
def test_a_branch_is_dropped_for_some_images_and_scaled_for_the_others(build_model, config):
    model = get_peft_model(build_model("vit"), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    seen = {}
    block = model.get_base_model().vit.layers[1]
    block.mlp.register_forward_hook(lambda module, args, output: seen.update(plain=output))
    add_drop_path(model, rate=0.5)
    block.mlp.register_forward_hook(lambda module, args, output: seen.update(dropped=output))
    model.train()(torch.randn(64, 3, 32, 32))
    is_dropped = (seen["dropped"] == 0).flatten(1).all(dim=1)
    assert 16 < is_dropped.sum() < 48
    torch.testing.assert_close(seen["dropped"][~is_dropped], 2 * seen["plain"][~is_dropped])
    model.eval()(torch.randn(4, 3, 32, 32))
    assert torch.equal(seen["dropped"], seen["plain"])


def test_rates_grow_from_nothing_at_the_first_block(build_model, pixel_values):
    model = build_model("dinov2").train()
    before = model(pixel_values).logits
    add_drop_path(model, rate=0.9)
    outputs = []
    model.dinov2.encoder.layer[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    changed = [model(pixel_values).logits for _ in range(3)]
    assert torch.equal(outputs[0], outputs[1])
    assert not all(torch.equal(logits, before) for logits in changed)


def test_blocks_before_the_first_adapter_drop_nothing(tmp_path):
    backbone = save_backbones(tmp_path)[0]
    late = MemberSpec(backbone=backbone, method=SSFConfig(blocks=[1]), drop_path=0.9)
    model = build_member(late, LABEL_NAMES)
    hooks = [len(block.mlp._forward_hooks) for block in model.get_base_model().vit.layers]
    assert hooks == [0, 1]


def test_gradients_are_equal_under_checkpointing(build_model, pixel_values):
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(build_model("vit"), SSFConfig())
        torch.manual_seed(0)
        add_drop_path(model, rate=0.5)
        base = model.get_base_model()
        if checkpointing:
            new_name = hasattr(base, "activation_checkpointing_enable")  # transformers 5.23; older ones have the other
            enable = base.activation_checkpointing_enable if new_name else base.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "vis_ssf" in name:
                parameter.data.fill_(1.1 if "scale" in name else 0.1)
        model.train()(pixel_values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        gradients.append([p.grad for name, p in model.named_parameters() if "vis_ssf" in name])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_rates_outside_the_range_are_refused():
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1.0"):
        MemberSpec(backbone="b", method=SSFConfig(), drop_path=1.0)
