"""FinerCAM: what its maps are, for each family, and that the model stays as it was."""

import copy
import logging
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finer_cam import FinerCAM, combine
from finer_cam.functional import compute_maps
from finer_cam.tail import backward
from support.tiny_classifiers import FAMILIES, NUM_LABELS, build, inputs, pixels

METHODS = ["gradcam", "hirescam", "layercam", "xgradcam", "gradcam++"]


def full_backward(model: nn.Module, layer: nn.Module, given: dict[str, Any], classes: list[int]) -> tuple[Tensor, Any]:
    """The slow way: activation and gradient of each class by a forward with a graph and one backward an image."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *call: seen.append(call[2][0] if type(call[2]) is tuple else call[2]))
    model = model.requires_grad_()
    output = model(**given) if "pixel_values" in given and len(given) > 1 else model(given["pixel_values"])
    handle.remove()
    logits = output if isinstance(output, Tensor) else output.logits
    seen[-1].retain_grad()
    rows = []
    for chosen in classes:
        seen[-1].grad = None
        logits[:, chosen].sum().backward(retain_graph=True)
        rows.append(seen[-1].grad.clone())
    return seen[-1].detach(), torch.stack(rows, dim=1)


def as_grid(tensor: Tensor, num_places: tuple[int, int]) -> Tensor:
    """`(..., N, D)` tokens with leading ones, or maps, as `(..., D, h, w)`."""
    if tensor.shape[-2:] == num_places:
        return tensor
    tokens = tensor[..., -num_places[0] * num_places[1] :, :]
    return tokens.transpose(-1, -2).unflatten(-1, num_places)


def test_target_layer_of_each_family(family: str) -> None:
    assert FinerCAM(build(family)).layer_name == FAMILIES[family][1]


def test_maps_equal_those_of_a_full_backward(family: str) -> None:
    model, given, method = build(family), inputs(family), "layercam"
    cam = FinerCAM(model, method=method, references=[2, 5])
    outs = [cam(**given, target=[1, 3]) for _ in range(2)]  # the second by the closed form, where there is one
    activations, gradients = full_backward(model, model.get_submodule(cam.layer_name), given, [1, 3, 2, 5])
    expected = combine(
        as_grid(activations, (4, 6)), as_grid(gradients, (4, 6)), torch.tensor([0, 1]), torch.tensor([[2, 3]] * 2),
        method=method,
    )  # fmt: skip
    for out in outs:
        assert out.grid.tolist() == [[4, 6]] * 2
        assert out.maps.shape == (2, 32, 48)
        torch.testing.assert_close(out.raw, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_pooling_heads_need_no_backward_after_the_first_call(family: str) -> None:
    cam = FinerCAM(build(family))
    given = [inputs(family)["pixel_values"], pixels(3, 64, 32, seed=3)]
    assert cam(given[0]).path == "autograd"
    for given_pixels in given:
        out = cam(given_pixels, target=[[1, 2]] * len(given_pixels), references=[0, 3, 4])
        fresh = FinerCAM(cam.model)(given_pixels, target=[[1, 2]] * len(given_pixels), references=[0, 3, 4])
        assert (out.path, fresh.path) == ("analytic", "autograd")
        torch.testing.assert_close(out.raw, fresh.raw, rtol=1e-4, atol=1e-5 * float(fresh.raw.max()))


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("dinov2", "dinov2.layernorm"),
        ("dinov2_with_registers", "dinov2_with_registers.layernorm"),
        ("clip", "vision_model.encoder.layers.2"),
        ("siglip", "vision_model.post_layernorm"),
        ("swin", "swin.layernorm"),
        ("beit", "beit.layers.2"),
    ],
)
def test_heads_of_tokens_have_a_closed_form_at_the_pooled_layer(family: str, layer: str) -> None:
    model = build(family)
    cam, other = FinerCAM(model, target_layer=layer, method="cam"), FinerCAM(model, target_layer=layer, gamma=0.6)
    first, second = cam(**inputs(family)), cam(**inputs(family))
    assert (first.path, second.path) == ("autograd", "analytic")
    torch.testing.assert_close(first.raw, second.raw, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.raw, 24 * other(**inputs(family)).raw, rtol=1e-4, atol=1e-6)  # 4 x 6 places


class NonlinearHead(nn.Module):
    """Pooling, then something else than a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.features(x)).mean((2, 3)).tanh())


def test_nonlinear_head_falls_back_to_autograd_with_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    model = NonlinearHead()
    cam = FinerCAM(model, target_layer=model.body)
    with caplog.at_level(logging.INFO, "finer_cam"):
        paths = [cam(pixels(seed=seed)).path for seed in range(3)]
    assert paths == ["autograd"] * 3
    assert len(caplog.records) == 1
    with pytest.raises(ValueError, match="needs mean pooling"):
        FinerCAM(model, target_layer="body", method="cam")(pixels())


def test_plain_module_with_in_place_layer_after_the_target() -> None:
    model = NonlinearHead()
    out = FinerCAM(model, target_layer="features.0", method="layercam")(pixels())
    with torch.no_grad():
        before = model.features[0](pixels())
    torch.testing.assert_close(out.evidence.activations, before)
    assert out.maps.shape == (2, 32, 48)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("weighting", ["uniform", "softmax"])
def test_gamma_zero_is_the_base_map_at_any_logit_scale(scale: float, weighting: Any) -> None:
    model, x = build("vit"), pixels()
    base = FinerCAM(model, gamma=0, num_references=1)(x)
    with torch.no_grad():
        model.classifier.weight.mul_(scale)
        model.classifier.bias.mul_(scale)
    cam = FinerCAM(model, weighting=weighting)
    torch.testing.assert_close(cam(x, gamma=0).maps, base.maps, atol=2e-5, rtol=0)
    if weighting == "uniform":
        assert torch.equal(cam(x).target, base.target)


def test_map_does_not_depend_on_the_logit_scale() -> None:
    model, x = build("vit"), pixels()
    before = FinerCAM(model)(x)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
        model.classifier.bias.mul_(30)
    torch.testing.assert_close(FinerCAM(model)(x).maps, before.maps, atol=2e-5, rtol=0)


def test_released_weights_fade_for_a_confident_model() -> None:
    model, x = build("vit"), pixels()
    with torch.no_grad():
        model.classifier.weight.mul_(1e4)
    with pytest.raises(ValueError, match=r"'reference-code'.* vanishes"):
        FinerCAM(model, weighting="reference-code")(x)


@pytest.mark.parametrize("method", [*METHODS, "scorecam"])
def test_regamma_equals_a_new_call(tiny_vit: nn.Module, method: str) -> None:
    cam = FinerCAM(tiny_vit, method=method, gamma=0.6)
    out = cam(pixels())
    for gamma in (0.0, 1.5):
        torch.testing.assert_close(out.regamma(gamma).maps, cam(pixels(), gamma=gamma).maps, atol=1e-6, rtol=0)
    several = out.regamma([0.0, 1.5])
    assert (several.maps.shape, several.gamma) == ((2, 2, 32, 48), (0.0, 1.5))
    assert torch.equal(several.maps[:, 1], out.regamma(1.5).maps)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.5])
def test_maps_equal_one_gradient_of_the_objective(method: str, gamma: float) -> None:
    """Autograd of `y_c - gamma * mean y_d` itself, and the base method once."""
    model, x = build("vit"), pixels()
    target, references = torch.tensor([1, 3]), torch.tensor([[2, 5, 0], [0, 6, 2]])
    out = FinerCAM(model, method=method, gamma=0.3, references=references.tolist())(x, target=target).regamma(gamma)
    seen: list[Tensor] = []
    handle = model.vit.layers[2].layernorm_before.register_forward_hook(lambda *call: seen.append(call[2]))
    logits = model(x).logits
    handle.remove()
    objective = logits.gather(1, target[:, None])[:, 0] - gamma * logits.gather(1, references).mean(dim=1)
    (gradient,) = torch.autograd.grad(objective.sum(), seen[0])
    raw = compute_maps(as_grid(seen[0].detach(), (4, 6)), as_grid(gradient, (4, 6)), method)
    scale = float(raw.max())
    torch.testing.assert_close(out.raw / scale, raw / scale, atol=2e-6, rtol=0)


def test_regamma_calls_no_model(tiny_vit: nn.Module) -> None:
    out = FinerCAM(tiny_vit)(pixels())
    calls = []
    handle = tiny_vit.register_forward_pre_hook(lambda *call: calls.append(call))
    out.regamma([0, 1, 2])
    handle.remove()
    assert calls == []


BATCHES = [(family, method) for family in FAMILIES for method in ("gradcam", "layercam")]


@pytest.mark.parametrize(("family", "method"), [*BATCHES, ("vit", "scorecam"), ("resnet", "scorecam")])
def test_batch_equals_single_images(family: str, method: str) -> None:
    cam, given = FinerCAM(build(family), method=method), inputs(family, 5)
    target, references = [0, 1, 2, 3, 4], [[1, 2], [2], [3, 4, 5], [0], [0, 6]]
    whole = cam(**given, target=target, references=references)
    x = given.pop("pixel_values")
    for i in range(5):
        one = cam(x[i : i + 1], **given, target=target[i], references=references[i])
        torch.testing.assert_close(one.raw[0], whole.raw[i], rtol=1e-3, atol=2e-5 * float(whole.raw[i].max()))
    assert whole.references.tolist()[1] == [2, -1, -1]


def test_several_targets_and_gammas(tiny_vit: nn.Module) -> None:
    cam = FinerCAM(tiny_vit)
    out = cam(pixels(), target=[[0, 1, 2], [3, 4, 5]], gamma=[0, 0.6])
    assert out.maps.shape == (2, 3, 2, 32, 48)
    assert (out.references.shape, out.weights.shape, out.is_empty.shape) == ((2, 3, 3), (2, 3, 3), (2, 3, 2))
    torch.testing.assert_close(out.maps[:, 1, 1], cam(pixels(), target=[1, 4]).maps, atol=1e-6, rtol=0)


def test_targets_that_share_references_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def count(*args: Any, **kwargs: Any) -> Tensor:
        passes.append(kwargs)
        return backward(*args, **kwargs)

    monkeypatch.setattr("finer_cam.observing.backward", count)
    FinerCAM(build("vit"))(pixels(), target=[[0, 1, 2, 3]] * 2, references=[5, 6])
    assert len(passes) == 4 + 1
    passes.clear()
    FinerCAM(build("vit"), num_references=0, gamma=0)(pixels())
    assert len(passes) == 1


def test_images_of_different_sizes_in_siglip2() -> None:
    from transformers import Siglip2Config, Siglip2ForImageClassification

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = Siglip2Config(vision_config={**tower, "patch_size": 8, "num_patches": 16})
    config.num_labels = NUM_LABELS
    model = Siglip2ForImageClassification(config).eval()
    shapes, longest = torch.tensor([[2, 5], [4, 3]]), 16
    mask = torch.zeros(2, longest, dtype=torch.int64)
    for row, (height, width) in enumerate(shapes.tolist()):
        mask[row, : height * width] = 1
    given = {
        "pixel_values": torch.randn(2, longest, 3 * 8 * 8),
        "spatial_shapes": shapes,
        "pixel_attention_mask": mask,
    }
    for layer in ("auto", "vision_model.post_layernorm"):
        cam = FinerCAM(model, target_layer=layer, references=[3])
        for expected in ("autograd", "autograd" if layer == "auto" else "analytic"):
            out = cam(**given, target=[1, 2])
            assert out.path == expected
            assert out.grid.tolist() == shapes.tolist()
            assert out.maps.shape == (2, 32, 40)
            assert out.maps[0, 16:].abs().max() == 0
            for i in range(2):
                single = {name: value[i : i + 1] for name, value in given.items()}
                one = cam(**single, target=[1, 2][i])
                height, width = shapes[i].tolist()
                torch.testing.assert_close(one.maps[0], out.maps[i, : 8 * height, : 8 * width], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="masks pixels"):
        FinerCAM(model, method="scorecam")(**given)


def test_one_logit_is_a_choice_of_two(tiny_resnet: nn.Module) -> None:
    tiny_resnet.classifier[1] = nn.Linear(32, 1)
    out = FinerCAM(tiny_resnet)(pixels(), target=[[0, 1]] * 2)
    assert out.logits.shape == (2, 2)
    assert out.references.tolist() == [[[1], [0]]] * 2
    cam = FinerCAM(tiny_resnet)
    first, second = (cam(pixels(), target=[[0, 1]] * 2) for _ in range(2))
    assert second.path == "analytic"
    torch.testing.assert_close(first.raw, second.raw, rtol=1e-4, atol=1e-5 * float(first.raw.max()))
    assert float((first.raw[:, 0] * first.raw[:, 1]).max()) == 0  # what speaks for one speaks against the other


def test_references_by_weights_matrix_names_and_function(tiny_vit: nn.Module) -> None:
    weight = tiny_vit.classifier.weight.detach()
    cosine = torch.nn.functional.normalize(weight) @ torch.nn.functional.normalize(weight).T
    expected = [[j for j in cosine[c].argsort(descending=True).tolist() if j != c][:2] for c in (0, 4)]
    cam = FinerCAM(tiny_vit, num_references=2)
    assert cam(pixels(), target=[0, 4], references="weights").references.tolist() == expected
    matrix = torch.zeros(NUM_LABELS, NUM_LABELS)
    matrix[0, 3], matrix[0, 5], matrix[0, 0], matrix[4, 2] = 7, 9, 99, 1
    assert cam(pixels(), target=[0, 4], references=matrix).references.tolist() == [[5, 3], [2, -1]]
    assert cam(pixels(), target="LABEL_1", references=["LABEL_2", 3]).references.tolist() == [[2, 3]] * 2
    chosen = cam(pixels(), target=[0, 4], references=lambda logits, target: (target[:, None] + 1) % NUM_LABELS)
    assert chosen.references.tolist() == [[1], [5]]


def test_given_weights_of_references(tiny_vit: nn.Module) -> None:
    options: dict[str, Any] = {"references": [2, 3]}
    only = FinerCAM(tiny_vit, references=[3])(pixels(), target=0)
    given = FinerCAM(tiny_vit, weighting=[0.0, 1.0], **options)(pixels(), target=0)
    each = FinerCAM(tiny_vit, weighting=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), **options)(pixels(), target=0)
    torch.testing.assert_close(given.maps, only.maps, atol=1e-6, rtol=0)
    torch.testing.assert_close(each.maps[0], only.maps[0], atol=1e-6, rtol=0)
    assert not torch.allclose(each.maps[1], only.maps[1], atol=1e-3)


def test_given_weight_of_the_target_goes_to_the_other_references(tiny_vit: nn.Module) -> None:
    out = FinerCAM(tiny_vit, weighting=[0.5, 0.25, 0.25], references=[2, 3, 4])(pixels(), target=[0, 2])
    assert out.references.tolist() == [[2, 3, 4], [-1, 3, 4]]
    assert out.weights.tolist() == [[0.5, 0.25, 0.25], [0, 0.5, 0.5]]


def test_no_reference_gives_the_base_map_and_one_warning(
    tiny_vit: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    cam = FinerCAM(tiny_vit, num_references=0)
    cam(pixels(), gamma=0)
    assert caplog.text == ""
    out = cam(pixels())
    cam(pixels())
    assert len(caplog.records) == 1
    assert "base maps" in caplog.text
    torch.testing.assert_close(out.maps, FinerCAM(tiny_vit, gamma=0)(pixels()).maps)


def test_score_cam_of_few_channels_and_small_batches(tiny_resnet: nn.Module) -> None:
    whole = FinerCAM(tiny_resnet, method="scorecam")(pixels())
    parts = FinerCAM(tiny_resnet, method="scorecam", channel_batch_size=5)(pixels())
    torch.testing.assert_close(whole.raw, parts.raw, rtol=1e-3, atol=1e-4)
    few = FinerCAM(tiny_resnet, method="scorecam", top_channels=4)(pixels())
    assert few.evidence.channels is not None
    variance = few.evidence.activations.flatten(2).var(dim=2)
    assert few.evidence.channels.tolist() == [sorted(row.argsort(descending=True)[:4].tolist()) for row in variance]


def test_clip_outliers_cuts_the_highest_places(tiny_vit: nn.Module) -> None:
    raw = FinerCAM(tiny_vit)(pixels()).raw
    clipped = FinerCAM(tiny_vit, clip_outliers=0.9)(pixels()).raw
    limit = raw.flatten(1).quantile(0.9, dim=1)[:, None, None]
    torch.testing.assert_close(clipped, raw.minimum(limit))


# The model stays as it was, whatever it is.


def state_of(model: nn.Module) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
        [weight.grad for weight in model.parameters()],
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_nothing_of_the_model_changes(family: str, method: str) -> None:
    model = build(family).train()
    model.get_submodule(FinerCAM(model).layer_name).eval()  # a mixture of modes comes back, too
    buffers = copy.deepcopy(dict(model.named_buffers()))
    before, given = state_of(model), inputs(family)
    cam = FinerCAM(model, method=method)
    for _ in range(2):
        out = cam(**given)
        assert not out.maps.requires_grad
        assert state_of(model) == before
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_hooks_are_gone_after_an_exception(tiny_vit: nn.Module) -> None:
    tiny_vit.train()
    before = state_of(tiny_vit)

    def fail(*args: Any) -> None:
        raise KeyError("broken")

    handle = tiny_vit.classifier.register_forward_hook(fail)
    with pytest.raises(KeyError, match="broken"):
        FinerCAM(tiny_vit)(pixels())
    handle.remove()
    assert state_of(tiny_vit) == before


def test_nothing_before_the_target_layer_is_recorded(tiny_vit: nn.Module) -> None:
    recorded = []
    for layer in tiny_vit.vit.layers:
        layer.register_forward_hook(lambda module, args, output: recorded.append(output.requires_grad))
    FinerCAM(tiny_vit)(pixels())
    assert recorded == [False, False, True]


def test_frozen_models_inside_no_grad_and_inference_mode(family: str) -> None:
    model, given = build(family), inputs(family)
    expected = FinerCAM(model)(**given).maps
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(FinerCAM(model)(**given).maps, expected, atol=1e-6, rtol=0)
    with torch.inference_mode():
        inside = {name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()}
        assert inside["pixel_values"].is_inference()
        out = FinerCAM(model)(**inside)
    torch.testing.assert_close(out.maps, expected, atol=1e-6, rtol=0)
    assert not out.maps.is_inference()


def test_weights_made_in_inference_mode_are_refused_where_a_gradient_is_needed() -> None:
    with torch.inference_mode():
        model = build("resnet")
    with pytest.raises(ValueError, match="inference_mode"):
        FinerCAM(model)(pixels())
    assert FinerCAM(model, method="scorecam")(pixels()).path == "forward"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(attention: str) -> None:
    model = build("vit")
    expected = FinerCAM(model)(pixels()).maps
    model.set_attn_implementation(attention)
    torch.testing.assert_close(FinerCAM(model)(pixels()).maps, expected, atol=1e-5, rtol=0)


class Checkpointed(nn.Module):
    """What lies behind the target layer is computed again in the backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.num_runs, self.options = nn.Linear(8, 4), 0, options

    def tail(self, x: Tensor) -> Tensor:
        self.num_runs += 1
        return self.second(x).tanh().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(checkpoint(self.tail, x, **self.options) if self.options else self.tail(x))


def test_checkpointed_tail() -> None:
    model = Checkpointed(use_reentrant=False)
    out = FinerCAM(model, target_layer="first")(pixels(), target=0)
    assert model.num_runs == 1 + 2  # once forward, and again for each of the two gradients
    model.options = {}
    torch.testing.assert_close(out.maps, FinerCAM(model, target_layer="first")(pixels(), target=0).maps)


def test_reentrant_checkpoints_are_refused_by_torch() -> None:
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        FinerCAM(Checkpointed(use_reentrant=True), target_layer="first")(pixels(), target=0)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_half_precision_is_near(family: str) -> None:
    model = build(family)
    expected = FinerCAM(model, references=[1, 2])(pixels(), target=0).maps
    out = FinerCAM(model.bfloat16(), references=[1, 2])(pixels().bfloat16(), target=0)
    assert out.maps.dtype == torch.float32
    assert float((out.maps - expected).abs().mean()) < 0.03
    for one, other in zip(out.maps, expected, strict=True):
        assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) > 0.99


@pytest.mark.parametrize("way", ["wrapped", "in place", "forward"])
def test_compiled_models_run_uncompiled(way: str) -> None:
    model = build("vit")
    expected = FinerCAM(model)(pixels()).maps
    compiled: Any = model
    if way == "wrapped":
        compiled = torch.compile(model, backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
        model.vit.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    compiled(pixels())
    torch.testing.assert_close(FinerCAM(compiled)(pixels()).maps, expected, atol=1e-6, rtol=0)


def test_data_parallel_wrapper_is_taken_off(tiny_vit: nn.Module) -> None:
    expected = FinerCAM(tiny_vit)(pixels()).maps
    torch.testing.assert_close(FinerCAM(nn.DataParallel(tiny_vit))(pixels()).maps, expected)


@pytest.mark.parametrize("family", ["vit", "convnext"])
@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_model_whose_weights_are_on_disk(family: str, method: str, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build(family)
    expected = FinerCAM(model, method=method)(pixels()).maps
    accelerate.disk_offload(model, offload_dir=tmp_path, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    cam = FinerCAM(model, method=method)
    for _ in range(2):
        torch.testing.assert_close(cam(pixels()).maps, expected, atol=1e-5, rtol=0)


def test_model_split_by_a_device_map(tiny_vit: nn.Module, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    expected = FinerCAM(tiny_vit)(pixels()).maps
    places = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "classifier": "disk"}
    model = accelerate.dispatch_model(tiny_vit, places, main_device="cpu", offload_dir=tmp_path)
    assert {weight.device.type for weight in model.parameters()} == {"cpu", "meta"}
    torch.testing.assert_close(FinerCAM(model)(pixels()).maps, expected, atol=1e-5, rtol=0)


def test_int8_layers_behind_the_target_are_refused_and_score_cam_works(tiny_vit: nn.Module) -> None:
    with pytest.warns(DeprecationWarning, match="torch.ao.quantization"):
        quantized = torch.ao.quantization.quantize_dynamic(tiny_vit, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"no gradient flows.*int8.*scorecam"):
        FinerCAM(quantized)(pixels())
    out = FinerCAM(quantized, method="scorecam")(pixels())
    expected = FinerCAM(tiny_vit, method="scorecam")(pixels(), target=out.target, references=out.references)
    assert float((out.maps - expected.maps).abs().mean()) < 0.1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
def test_peft_model(tiny_vit: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    expected = FinerCAM(tiny_vit)(pixels()).maps
    adapted = peft.get_peft_model(tiny_vit, peft.LoraConfig(target_modules=["q_proj", "v_proj", "query", "value"]))
    torch.testing.assert_close(FinerCAM(adapted)(pixels()).maps, expected, atol=1e-6, rtol=0)


# Errors.


def test_target_layer_without_gradient_names_one_with() -> None:
    model = build("vit")
    with pytest.raises(ValueError, match=r"zero everywhere.*vit\.layers\.2\.layernorm_before"):
        FinerCAM(model, target_layer="vit.layers.2")(pixels())


class Gate(nn.Module):
    """Reads nothing of an image that is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        nn.init.ones_(self.body.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().mean((2, 3)))


def test_image_without_gradient_in_a_batch_is_named() -> None:
    model = Gate()
    x = torch.stack([torch.ones(3, 8, 8), -torch.ones(3, 8, 8)])
    with pytest.raises(ValueError, match=r"'body' is zero everywhere for image 1, though not for all"):
        FinerCAM(model, target_layer="body")(x)
    assert FinerCAM(model, target_layer="body")(x[:1]).maps.shape == (1, 8, 8)


def test_closed_form_is_given_up_where_it_no_longer_holds() -> None:
    """A ReLU behind the target layer does nothing for the first image, which is bright, and all for the second."""
    model = Gate()
    mixed = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    bright = mixed + 5
    learnt = FinerCAM(model, target_layer="body")
    assert [learnt(bright).path for _ in range(2)] == ["autograd", "analytic"]
    cam = FinerCAM(model, target_layer="body", method="layercam")
    for given, path in ((bright, "autograd"), (mixed, "autograd"), (mixed, "autograd")):
        out = cam(given, target=0)
        assert out.path == path
        torch.testing.assert_close(
            out.raw, FinerCAM(model, target_layer="body", method="layercam")(given, target=0).raw
        )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_closed_form_sees_an_adapter_of_the_classifier(family: str) -> None:
    peft = pytest.importorskip("peft")
    name = {"convnext": "classifier", "resnet": "classifier.1"}[family]
    model = peft.get_peft_model(build(family), peft.LoraConfig(target_modules=[name], lora_alpha=64))
    cam = FinerCAM(model, method="layercam")
    assert [cam(pixels(), target=0, references=[1]).path for _ in range(2)] == ["autograd", "analytic"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    out, fresh = (one(pixels(), target=0, references=[1]) for one in (cam, FinerCAM(model, method="layercam")))
    assert out.path == "autograd"
    torch.testing.assert_close(out.raw, fresh.raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "eigencam"}, "`method` must be one of cam, gradcam"),
        ({"weighting": "sum"}, "`weighting` must be one of uniform"),
        ({"normalize": "zscore"}, "`normalize` must be"),
        ({"gamma": -1}, "`gamma` must be a number from 0"),
        ({"gamma": []}, "`gamma` must be a number from 0"),
        ({"num_references": -1}, "`num_references` must be a whole number"),
        ({"channel_batch_size": 0}, "`channel_batch_size` must be"),
        ({"top_channels": 0}, "`top_channels` must be"),
        ({"clip_outliers": 2.0}, "`clip_outliers` must be a quantile"),
        ({"target_layer": "vit.layer.9"}, r"`target_layer` must be 'auto'.*'vit.layer.9'"),
        ({"target_layer": nn.Linear(1, 1)}, "no part of it"),
    ],
)
def test_bad_options(tiny_vit: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinerCAM(tiny_vit, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"target": 7}, "`target` must be a class id from 0 to 6, got 7"),
        ({"target": [0, 1, 2]}, "one for each of the 2 images"),
        ({"target": "wren"}, "must name a class of the model, got 'wren'.*LABEL_0"),
        ({"target": [[0, 1], [2]]}, "as many classes for each image"),
        ({"target": True}, "class ids or names"),
        ({"references": [[0]]}, "one list for each of the 2 images, got 1"),
        ({"target": 2, "references": [2]}, "image 0 is compared with nothing but its target 2"),
        ({"references": torch.zeros(3, 3)}, r"shape \(7, 7\), got \(3, 3\)"),
        ({"references": lambda logits, target: torch.full((2, 1), 9)}, "class ids below 7"),
        ({"references": object()}, "`references` must be"),
        ({"gamma": float("nan")}, "`gamma` must be a number"),
        ({"pixel_values": torch.zeros(3, 32, 48)}, "`pixel_values` must have the shape"),
        ({"pixel_values": torch.full((2, 3, 32, 48), float("nan"))}, "finite logits"),
    ],
)
def test_bad_calls(tiny_vit: nn.Module, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinerCAM(tiny_vit)(**{"pixel_values": pixels(), **call})


def test_weights_of_the_wrong_length(tiny_vit: nn.Module) -> None:
    with pytest.raises(ValueError, match="one weight for each reference"):
        FinerCAM(tiny_vit, weighting=[0.5, 0.5])(pixels())


def test_model_without_logits_or_blocks_is_explained() -> None:
    import transformers as tf

    with pytest.raises(ValueError, match="put a head on a backbone"):
        FinerCAM(tf.ViTModel(build("vit").config))(pixels())
    with pytest.raises(ValueError, match="expects a model with a list of blocks"):
        FinerCAM(NonlinearHead())


class Bottleneck(nn.Module):
    """A block as torchvision's ResNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class PlainResNet(nn.Module):
    """Stages as attributes; the first argument has another name, and there are keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1, self.layer2 = nn.Sequential(Bottleneck()), nn.Sequential(Bottleneck(), Bottleneck())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.conv1(x))).mean((2, 3)))


def test_plain_resnet_is_read_at_its_last_block_and_called_by_position() -> None:
    cam = FinerCAM(PlainResNet().eval())
    assert cam.layer_name == "layer2.1"
    assert [cam(pixels(), scale=1).path for _ in range(2)] == ["autograd", "analytic"]


def test_swin_pads_an_image_of_half_patches() -> None:
    out = FinerCAM(build("swin"))(pixels(2, 34, 48), interpolate_pos_encoding=True)
    assert out.grid.tolist() == [[5, 6]] * 2  # 34 pixels are 9 patches, of which merging leaves 5
    assert out.maps.shape == (2, 34, 48)


class Pair(NamedTuple):
    """What a block may give."""

    hidden_states: Tensor
    number: int


def test_layer_that_gives_a_named_tuple() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x * 2, 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            pair = self.block(x)
            return self.head(pair.hidden_states.mean((2, 3)) * pair.number)

    assert FinerCAM(Model(), target_layer="block")(pixels()).maps.shape == (2, 32, 48)


def test_layer_that_is_not_reached(tiny_vit: nn.Module) -> None:
    tiny_vit.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'spare' was not reached"):
        FinerCAM(tiny_vit, target_layer="spare")(pixels())
    with pytest.raises(ValueError, match=r"must give maps|tokens"):
        FinerCAM(tiny_vit, target_layer="classifier")(pixels())
