"""The head on the class token reads what it should, and classifiers come from folders with a new head."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from peft_ensemble import ClassTokenClassifier, load_classifier
from support.tiny_adapters import WIDE


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
