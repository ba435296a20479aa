"""The parts of every family are found, by structure."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTConfig, ViTModel

from peft_ensemble import SSFConfig, VPTConfig, find_structure
from support.tiny_adapters import FAMILIES

PREFIX_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_registers": 4, "dinov3": 3, "clip": 1, "siglip": 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_have_the_right_modules(build_model, family):
    model = build_model(family)
    structure = find_structure(model)
    assert (structure.hidden_size, structure.grid, structure.head) == (32, (4, 4), "classifier")
    assert structure.num_prefix_tokens == PREFIX_TOKENS[family]
    assert len(structure.blocks) == 2
    for number, block in enumerate(structure.blocks):
        assert block.block.endswith(f".{number}")
        shapes = [tuple(model.get_submodule(name).weight.shape) for name in block.linears]
        assert shapes == [(32, 32)] * 4 + [(64, 32), (32, 64)]
        assert [name.rpartition(".")[2][0] for name in (block.q, block.k, block.v)] == ["q", "k", "v"]
        assert all(isinstance(model.get_submodule(name), nn.LayerNorm) for name in block.norms)
        # The first norm is the one whose output the attention reads.
        seen = {}
        hooks = [
            model.get_submodule(block.ln1).register_forward_hook(lambda m, a, out, s=seen: s.update(ln1=out)),
            model.get_submodule(block.q).register_forward_pre_hook(lambda m, a, s=seen: s.update(q=a[0])),
            model.get_submodule(block.ln2).register_forward_hook(lambda m, a, out, s=seen: s.update(ln2=out)),
            model.get_submodule(block.fc1[0]).register_forward_pre_hook(lambda m, a, s=seen: s.update(fc1=a[0])),
        ]
        model(pixel_values=torch.randn(1, 3, 32, 32))
        [hook.remove() for hook in hooks]
        assert torch.equal(seen["ln1"], seen["q"])
        assert torch.equal(seen["ln2"], seen["fc1"])


@pytest.mark.parametrize("family", FAMILIES)
def test_final_norm_is_one_that_the_logits_depend_on(build_model, family, pixel_values):
    model = build_model(family)
    name = find_structure(model).final_norm
    assert (name is None) == (family == "clip")  # CLIP's head reads the last block directly
    logits = model(pixel_values=pixel_values).logits
    if name:
        (gradient,) = torch.autograd.grad(logits.sum(), model.get_submodule(name).weight)
        assert gradient.abs().sum() > 0


def test_swiglu_has_one_last_layer_and_all_others_first():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8)
    config.use_swiglu_ffn = True
    block = find_structure(Dinov2Model(config)).blocks[0]
    names = [name.rpartition(".")[2] for name in (*block.fc1, block.fc2)]
    assert names in (["gate_proj", "up_proj", "down_proj"], ["weights_in", "weights_out"])  # transformers 5.23, 5.17


def test_grid_of_a_model_that_is_not_square():
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=(24, 40), patch_size=8)
    assert find_structure(ViTModel(config)).grid == (3, 5)


@pytest.mark.parametrize("config", [SSFConfig(), VPTConfig(num_prompts=2, deep=True)], ids=["leaves", "blocks"])
def test_structure_is_found_again_under_adapters(build_model, config):
    model = build_model("dinov2")
    before = find_structure(model)
    tuned = get_peft_model(model, config).base_model.model
    after = find_structure(tuned)
    assert after.blocks[1].block == before.blocks[1].block
    assert after.blocks[1].q.replace("base_layer.", "") == before.blocks[1].q
    assert after.head == "classifier"


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (CLIPModel(CLIPConfig(text_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1})), 2),
        (BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)), 0),
    ],
    ids=["two towers", "post-norm"],
)
def test_models_without_one_stack_are_refused(model, found):
    with pytest.raises(ValueError, match=f"one stack of pre-LN transformer blocks, found {found}"):
        find_structure(model)
