"""Variants against the slow reference, every family, an unmodified backbone, and the ways to train."""

import copy
import hashlib
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification, get_prompt_cam_model
from support import prompt_cam_reference as reference
from support.tiny_vits import BUILDERS, build_inputs, build_vit

Tensors = dict[str, torch.Tensor]
VARIANTS: dict[str, dict[str, Any]] = {
    "deep": {},
    "deep-2-agnostic": {"num_agnostic_prompts": 2},
    "deep-0-agnostic": {"num_agnostic_prompts": 0},
    "shallow": {"variant": "shallow"},
    "interpolated-2": {"variant": "interpolated", "insert_layer": 2},
    "interpolated-2-3-agnostic": {"variant": "interpolated", "insert_layer": 2, "num_agnostic_prompts": 3},
    "late": {"variant": "late"},
}
each_family = pytest.mark.parametrize("family", BUILDERS)
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def build_model(family: str = "vit", seed: int = 0, **options: Any) -> PromptCAMForImageClassification:
    torch.manual_seed(seed)
    return get_prompt_cam_model(build_vit(family), PromptCAMConfig(num_classes=5, **options)).eval()


def hash_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def keep_attention(model: Any, **inputs: Any) -> torch.Tensor:
    """The last layer's attention as eager attention returns it, (B, heads, tokens, tokens)."""
    attention = next(module for module in model._view().last_layer.children() if hasattr(module, "q_proj"))
    kept: list[torch.Tensor] = []
    handle = attention.register_forward_hook(lambda module, args, output: kept.append(output[1]))
    model(**inputs)
    handle.remove()
    return kept[0]


@each_variant
def test_variant_equals_the_reference(
    golden_vit: Any, timm_weights: Tensors, golden: Tensors, options: dict[str, Any]
) -> None:
    model = get_prompt_cam_model(golden_vit, PromptCAMConfig(num_classes=4, **options)).eval()
    weights = {**timm_weights, "head.weight": model.head.weight.detach(), "head.bias": model.head.bias.detach()}
    prompts = {int(name[6:]): prompt.detach() for name, prompt in model.prompts.items()}
    for image in range(2):
        pixels = golden["pixel_values"][image]
        expected = reference.run(weights, prompts, pixels, num_layers=3, num_heads=4, patch=8)
        assert_close(model(pixels[None]).logits[0], expected.scores.float(), atol=1e-5, rtol=0)
        maps = model.maps(pixels[None], [0, 1, 2, 3], normalize=None)[0]
        on_patches = expected.attention[..., -16:].transpose(0, 1).unflatten(-1, (4, 4))
        assert_close(maps, on_patches.float(), atol=1e-5, rtol=0)


@each_variant
def test_trainable_parameters_are_prompts_and_head(options: dict[str, Any]) -> None:
    model = build_model(**options)
    counts = {name: len(prompt) for name, prompt in model.prompts.items()}
    expected = {
        "deep": {"layer_0": 5, "layer_1": 5, "layer_2": 5},
        "deep-2-agnostic": {"layer_0": 2, "layer_1": 2, "layer_2": 5},
        "deep-0-agnostic": {"layer_2": 5},
        "shallow": {"layer_0": 5},
        "interpolated-2": {"layer_0": 5, "layer_1": 5},
        "interpolated-2-3-agnostic": {"layer_0": 3, "layer_1": 5},
        "late": {"layer_2": 5},
    }
    assert counts == expected[next(name for name, value in VARIANTS.items() if value == options)]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {*(f"prompts.{name}" for name in counts), "head.weight", "head.bias"} == set(model.state_dict())


@each_family
@each_variant
def test_maps_are_the_attention_of_the_last_layer(family: str, options: dict[str, Any]) -> None:
    """Eager attention returns its weights: the rows of the class prompts have to be the maps."""
    model, inputs = build_model(family, **options), build_inputs(family)
    model.backbone.set_attn_implementation("eager")
    kept, logits = keep_attention(model, **inputs), model(**inputs).logits
    num_patches, grid = (12, (3, 4)) if family.startswith("siglip2") else (16, (4, 4))
    start = 5 if family.startswith("siglip2") else kept.shape[-1] - 16
    rows = kept[:, :, :5, start : start + num_patches].transpose(1, 2).unflatten(-1, grid)
    assert_close(model.maps(**inputs, classes=[0, 1, 2, 3, 4], normalize=None), rows, atol=1e-6, rtol=1e-5)
    assert_close(model.maps(**inputs, classes=3, normalize=None), rows[:, 3], atol=1e-6, rtol=1e-5)
    assert_close(model.maps(**inputs).sum((-1, -2)), torch.ones(2, 4))
    model.backbone.set_attn_implementation("sdpa")
    assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-5)


@each_family
def test_padding_and_neighbours_change_nothing(family: str) -> None:
    model, inputs = build_model(family), build_inputs(family, batch_size=3)
    together = model(**inputs).logits
    alone = torch.cat([model(**{key: value[i : i + 1] for key, value in inputs.items()}).logits for i in range(3)])
    assert_close(together, alone, atol=1e-5, rtol=1e-5)
    if family.startswith("siglip2"):
        noisy = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
        noisy["pixel_values"][:, 12:] = 9.0
        assert_close(model(**noisy).logits, together, atol=1e-5, rtol=1e-5)


@each_family
def test_backbone_does_what_it_did(family: str) -> None:
    backbone, inputs = build_vit(family), build_inputs(family)
    before, digest = backbone(**inputs).last_hidden_state, hash_weights(backbone)
    model = get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=5))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    assert torch.equal(backbone(**inputs).last_hidden_state, before)  # called by itself, it takes no prompts
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert model.detach() is backbone
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in backbone.modules())
    assert torch.equal(backbone(**inputs).last_hidden_state, before)
    assert hash_weights(backbone) == digest
    with pytest.raises(RuntimeError, match="detached"):
        model(**inputs)


def test_models_share_a_backbone() -> None:
    backbone, inputs = build_vit("vit"), build_inputs("vit")
    alone = [get_prompt_cam_model(copy.deepcopy(backbone), PromptCAMConfig(num_classes=n)).eval() for n in (3, 4)]
    shared = [get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=n)).eval() for n in (3, 4)]
    for one, other in zip(alone, shared, strict=True):
        other.load_state_dict(one.state_dict())
        assert torch.equal(other(**inputs).logits, one(**inputs).logits)
    expected = shared[1](**inputs).logits
    shared[0].detach()
    assert torch.equal(shared[1](**inputs).logits, expected)


def test_deep_copy_is_a_model_of_its_own() -> None:
    model, inputs = build_model(), build_inputs("vit")
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
    expected = model(**inputs).logits
    twin.prompts["layer_2"].data.neg_()
    assert torch.equal(model(**inputs).logits, expected)
    changed = twin(**inputs).logits
    assert not torch.allclose(changed, expected)
    model.detach()
    assert torch.equal(twin(**inputs).logits, changed)


def test_threads_do_not_meet() -> None:
    model, inputs = build_model(), build_inputs("vit", batch_size=4)
    expected = [model.rank_heads(inputs["pixel_values"][i : i + 1], 1).removal_scores for i in range(4)]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = model.rank_heads(inputs["pixel_values"][i : i + 1], 1).removal_scores

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_close(found[i], expected[i], atol=1e-6, rtol=0)


def test_images_of_another_size_are_refused_unless_asked_for() -> None:
    with pytest.raises(ValueError, match="doesn't match model"):
        build_model()(torch.randn(1, 3, 32, 64))


@pytest.mark.parametrize("family", [family for family in BUILDERS if family != "siglip2_vision_model"])
def test_wide_images(family: str) -> None:
    model, wide = build_model(family), torch.randn(2, 3, 32, 64)
    model.backbone.set_attn_implementation("eager")
    rows = keep_attention(model, pixel_values=wide, interpolate_pos_encoding=True)[:, :, :5, -32:]
    maps = model.maps(wide, [0, 1, 2, 3, 4], normalize=None, interpolate_pos_encoding=True)
    assert_close(maps, rows.transpose(1, 2).unflatten(-1, (4, 8)), atol=1e-6, rtol=1e-5)
    ranked = model.rank_heads(wide, 0, interpolate_pos_encoding=True)
    assert_close(ranked.score, model(wide, interpolate_pos_encoding=True).logits[:, 0], atol=1e-5, rtol=1e-5)


@each_family
def test_maps_and_rankings_of_a_batch_are_those_of_its_images(family: str) -> None:
    model, inputs = build_model(family), build_inputs(family, batch_size=3)
    classes = torch.tensor([3, 0, 4])
    maps = model.maps(**inputs, classes=classes)
    rankings = {
        ranking: model.rank_heads(**inputs, classes=classes, ranking=ranking)
        for ranking in ("greedy", "shapley", "leave_one_out")
    }
    for image in range(3):
        alone = {key: value[image : image + 1] for key, value in inputs.items()}
        own = classes[image : image + 1]
        assert_close(maps[image], model.maps(**alone, classes=own)[0], atol=1e-6, rtol=1e-5)
        for ranking, together in rankings.items():
            single = model.rank_heads(**alone, classes=own, ranking=ranking)
            assert together.order[image].tolist() == single.order[0].tolist()
            assert_close(together.importance[image], single.importance[0], atol=1e-5, rtol=1e-4)


@each_family
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    gradients, calls = [], []
    for checkpointing in (False, True):
        model, inputs = build_model(family, prompt_dropout=0.3), build_inputs(family)
        if checkpointing:
            model.activation_checkpointing_enable()
        count: list[Any] = []
        for layer in model._view().layers:
            norm = next(module for module in layer.children() if isinstance(module, torch.nn.LayerNorm))
            norm.register_forward_hook(lambda module, args, output, count=count: count.append(module))
        model.train()
        torch.manual_seed(1)
        model(**inputs, labels=torch.tensor([3, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        calls.append(len(count))
    assert calls == [3, 6]  # every layer is computed again
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(ValueError, match="use_reentrant=False"):
        build_model().gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bf16", "fp16"])
def test_autocast_and_half_precision_backbones(dtype: torch.dtype, tolerance: float) -> None:
    model, inputs = build_model(), build_inputs("vit")
    expected, maps = model(**inputs).logits, model.maps(**inputs, classes=2)
    with torch.autocast("cpu", dtype):
        output = model(**inputs, labels=torch.tensor([0, 1]))
    output.loss.backward()
    assert_close(output.logits.float(), expected, atol=tolerance, rtol=tolerance)
    assert model.prompts["layer_0"].grad.dtype == torch.float32
    model.backbone.to(dtype)
    assert_close(model(**inputs).logits, expected, atol=tolerance, rtol=tolerance)
    found = model.maps(**inputs, classes=2)
    assert found.dtype == torch.float32
    assert_close(found, maps, atol=tolerance, rtol=tolerance)
    assert model.rank_heads(**inputs, ranking="shapley").importance.shape == (2, 4)


def test_dropout_of_prompts_in_training_only() -> None:
    model, inputs = build_model(prompt_dropout=0.5), build_inputs("vit")
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    state = torch.get_rng_state()
    assert torch.equal(model.maps(**inputs), model.maps(**inputs))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_of_single_modules_survive_maps() -> None:
    model = build_model().train()
    model.backbone.eval()
    model.maps(**build_inputs("vit"))
    assert model.training
    assert not model.backbone.training


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "clip_vision_model", "siglip_vision_model"])
def test_late_training_on_features_is_training_on_pixels(family: str) -> None:
    model, inputs = build_model(family, variant="late", prompt_dropout=0), build_inputs(family)
    labels = torch.tensor([0, 1])
    model.train()
    features = model.features(inputs["pixel_values"])
    assert not features.requires_grad
    gradients = []
    for given in (inputs, {"hidden_states": features}):
        model.zero_grad()
        output = model(**given, labels=labels)
        output.loss.backward()
        gradients.append((output.logits, model.prompts["layer_2"].grad.clone(), model.head.weight.grad.clone()))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_what_late_training_refuses() -> None:
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="variant 'late'"):
        build_model().features(pixels)
    with pytest.raises(ValueError, match="variant 'late'"):
        build_model()(hidden_states=torch.randn(1, 17, 32))
    with pytest.raises(ValueError, match="rotary"):
        build_model("dinov3_vit", variant="late").features(pixels)
    with pytest.raises(ValueError, match="masks"):
        build_model("siglip2_vision_model", variant="late").features(**build_inputs("siglip2_vision_model"))
    model = build_model(variant="late")
    with pytest.raises(ValueError, match="either"):
        model(pixels, hidden_states=model.features(pixels))
    with pytest.raises(ValueError, match="either"):
        model()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: model.maps(x, 5), "from 0 to 4"),
        (lambda model, x: model.maps(x, [0, -1]), "from 0 to 4"),
        (lambda model, x: model.maps(x, []), "whole numbers"),
        (lambda model, x: model.maps(x, 0.5), "whole numbers"),
        (lambda model, x: model.maps(x, torch.tensor([0, 1, 2])), "each of 2 images"),
        (lambda model, x: model.maps(x, normalize="all"), "'patches' or None"),
        (lambda model, x: model(x, labels=torch.tensor([0, 5])), "from 0 to 4, got 0 to 5"),
        (lambda model, x: model(x, labels=torch.tensor([1, -100])), "from 0 to 4, got -100 to 1"),
        (lambda model, x: model.rank_heads(x, ranking="random"), "greedy, shapley, leave_one_out"),
        (lambda model, x: model.rank_heads(x, [0, 1]), "one for each image"),
        (lambda model, x: model.rank_heads(x, blur="gauss"), "patches, all_tokens"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(build_model(), torch.randn(2, 3, 32, 32))


def test_siglip2_maps_need_one_grid() -> None:
    model, inputs = build_model("siglip2_vision_model"), build_inputs("siglip2_vision_model")
    inputs["spatial_shapes"] = torch.tensor([[3, 4], [4, 3]])
    assert model(**inputs).logits.shape == (2, 5)
    with pytest.raises(ValueError, match=r"\(3, 4\), \(4, 3\)"):
        model.maps(**inputs)


def test_class_of_each_image() -> None:
    model, inputs = build_model(), build_inputs("vit")
    assert_close(model.maps(**inputs, classes=np.int64(3)), model.maps(**inputs, classes=3))
    assert model.rank_heads(**inputs, classes=np.int64(3)).classes.tolist() == [3, 3]
    every = model.maps(**inputs, classes=[0, 1, 2, 3, 4])
    chosen = model.maps(**inputs, classes=torch.tensor([4, 1]))
    assert_close(chosen, torch.stack([every[0, 4], every[1, 1]]))
    predicted = model(**inputs).logits.argmax(1)
    assert_close(model.maps(**inputs), torch.stack([every[i, c] for i, c in enumerate(predicted)]))
