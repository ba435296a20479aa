"""The head on the class token reads what it should, and classifiers come from folders with a new head."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from peft_ensemble import ClassTokenClassifier, MemberSpec, SSFConfig, load_classifier
from peft_ensemble.data import with_ids
from peft_ensemble.fitting import train
from support.tiny_adapters import WIDE
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images, save_backbones


@pytest.mark.parametrize("family", ["vit", "dinov2_registers", "clip"])
def test_class_token_behind_the_final_norm_is_read(build_model, pixel_values, family, tmp_path):
    build_model(family).save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), num_labels=3, pooling="cls").eval()
    assert isinstance(model, ClassTokenClassifier)
    native = build_model(family).eval()
    backbone = native.vision_model if family == "clip" else native.base_model
    with torch.no_grad():
        output = backbone(pixel_values)
        token = output.last_hidden_state[:, 0]
        token = native.vision_model.post_layernorm(token) if family == "clip" else token
        torch.testing.assert_close(model(pixel_values).logits, model.classifier(token))
    labels = torch.tensor([0, 1, 2, 0])
    logits = model(pixel_values).logits
    assert model(pixel_values, labels=labels).loss == torch.nn.functional.cross_entropy(logits, labels)


def test_head_is_new_and_drawn_from_the_seed_alone(build_model, tmp_path):
    build_model("vit").save_pretrained(tmp_path)
    state = torch.get_rng_state()
    heads = [load_classifier(str(tmp_path), num_labels=5, seed=seed).classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], build_model("vit").classifier.weight)  # same shape, and yet not the old one


def test_models_without_a_class_token_and_unknown_poolings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="SiglipVisionModel has no class token; use pooling='native'"):
        ClassTokenClassifier(SiglipVisionModel(SiglipVisionConfig(**WIDE)), num_labels=3)
    with pytest.raises(ValueError, match="pooling must be 'native' or 'cls', got 'mean'"):
        load_classifier(str(tmp_path), num_labels=3, pooling="mean")
    assert ClassTokenClassifier(CLIPVisionModel(CLIPVisionConfig(**WIDE)), num_labels=3).num_labels == 3


@pytest.mark.parametrize("pooling", ["native", "cls"])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, pooling):
    backbone = save_backbones(tmp_path)[1]
    spec = MemberSpec(backbone=backbone, method=SSFConfig(), pooling=pooling, augmentation="none")
    labeled, results = with_ids(draw_images(6, seed=0)), []
    for size, steps in ((6, 1), (3, 2)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        args = arguments(num_train_epochs=1, max_grad_norm=0, **options)
        train(spec, LABEL_NAMES, labeled, args, tmp_path / str(steps), ("none",), "")
        results.append(load_file(tmp_path / str(steps) / "adapter_model.safetensors"))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["native", "cls"])
def test_a_backbone_stored_in_half_precision_is_trained_in_single(build_model, pixel_values, tmp_path, pooling):
    build_model("vit").half().save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), num_labels=3, pooling=pooling)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(pixel_values=pixel_values).logits.dtype == torch.float32
    half = load_classifier(str(tmp_path), num_labels=3, pooling=pooling, dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_new_head_is_no_news_but_missing_weights_of_the_backbone_are_an_error(build_model, tmp_path, caplog):
    model = build_model("vit")
    model.save_pretrained(tmp_path / "whole")
    load_classifier(str(tmp_path / "whole"), num_labels=3)
    assert caplog.text == ""
    state = model.state_dict()
    del state["vit.layers.1.mlp.fc1.weight"]
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(
        ValueError, match=r"1 are missing or of another shape, such as vit\.layers\.1\.mlp\.fc1\.weight"
    ):
        load_classifier(str(tmp_path / "part"), num_labels=3)
