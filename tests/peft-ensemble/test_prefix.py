"""What frozen blocks give is the same whether they run with the rest, apart, or out of a cache."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification, TrainingArguments

from peft_ensemble import AdaptFormerConfig, MemberSpec, SSFConfig, VPTConfig
from peft_ensemble.augmentation import augment, name_view
from peft_ensemble.data import with_ids
from peft_ensemble.fitting import build_member, train
from peft_ensemble.prediction import predict, share_weights
from peft_ensemble.prefix import FeatureCache, FrozenPrefix, count_frozen_blocks
from support.tiny_adapters import FAMILIES, METHODS, SCALED
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images, save_backbones

# The name in transformers 5.23, and the one before.
NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in NAMES if name in TrainingArguments.__dataclass_fields__)


def late(method):
    config = METHODS[method]()
    config.blocks = [1]
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_features_in_the_place_of_pixels_give_the_same_logits_and_gradients(build_model, pixel_values, family):
    torch.manual_seed(0)
    model = get_peft_model(build_model(family), AdaptFormerConfig(bottleneck=4, blocks=[1])).eval()
    labels = torch.tensor([0, 1, 2, 3])
    whole = model(pixel_values=pixel_values, labels=labels)
    expected = torch.autograd.grad(whole.loss, [p for p in model.parameters() if p.requires_grad])
    prefix = FrozenPrefix(model, 1, (3, 32, 32))
    features = prefix.compute(pixel_values)
    with prefix.skip():
        assert torch.equal(prefix.compute(pixel_values), features)
        tail = model(pixel_values=features, labels=labels)
        actual = torch.autograd.grad(tail.loss, [p for p in model.parameters() if p.requires_grad])
    assert torch.equal(tail.logits, whole.logits)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_frozen_prefix(build_model, pixel_values, method):
    model = get_peft_model(build_model("dinov2"), late(method)).eval()
    assert count_frozen_blocks(model) == 1
    prefix = FrozenPrefix(model, 1, (3, 32, 32))
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits
        with prefix.skip():
            assert torch.equal(model(pixel_values=prefix.compute(pixel_values)).logits, expected)


def test_frozen_blocks_do_not_run_and_everything_is_put_back(build_model, pixel_values):
    model = get_peft_model(build_model("vit"), SSFConfig(blocks=[1])).eval()
    base = model.get_base_model()
    ran = []
    base.vit.layers[0].mlp.register_forward_hook(lambda *args: ran.append("block"))
    base.vit.embeddings.patch_embeddings.projection.register_forward_hook(lambda *args: ran.append("patches"))
    prefix = FrozenPrefix(model, 1, (3, 32, 32))
    features = prefix.compute(pixel_values)
    ran.clear()
    with prefix.skip():
        model(pixel_values=features)
        assert ran == ["patches"]  # the hook of the replaced patch embedding: its forward makes nothing
    with pytest.raises(AttributeError), prefix.skip():
        model("no features")
    assert not any("forward" in module.__dict__ for module in model.modules())
    model(pixel_values=pixel_values)
    assert ran[-2:] == ["patches", "block"]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SSFConfig(), 0),
        (SSFConfig(blocks=[1]), 1),
        (VPTConfig(num_prompts=2, blocks=[1]), 1),
        (LoraConfig(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"), 1),
        (LoraConfig(target_modules=["projection", "layers.1.mlp.fc1"]), 0),
        (LoraConfig(target_modules=["classifier"]), 2),
    ],
    ids=["all", "late", "prompts", "lora", "patches", "head"],
)
def test_count_of_frozen_blocks(build_model, config, count):
    assert count_frozen_blocks(get_peft_model(build_model("vit"), config)) == count


def test_a_backbone_that_is_random_in_training_has_no_frozen_blocks(build_model, pixel_values):
    base = Dinov2ForImageClassification(Dinov2Config(**SCALED, drop_path_rate=0.1))
    assert count_frozen_blocks(get_peft_model(base, SSFConfig(blocks=[1]))) == 0
    model = get_peft_model(build_model("dinov3"), SSFConfig(blocks=[1])).train()
    assert not torch.equal(model(pixel_values).logits, model(pixel_values).logits)  # it moves positions
    assert count_frozen_blocks(model) == 0


def test_cache_keeps_what_came_first_up_to_its_limit():
    cache, computed = FeatureCache(max_bytes=16), []

    def compute(key):
        computed.append(key)
        return torch.full((2,), float(key))

    for key in (1, 2, 3, 1, 2, 3):
        assert cache.get(key, lambda key=key: compute(key)).tolist() == [key, key]
    assert computed == [1, 2, 3, 3]


@pytest.mark.parametrize("view", ["none", "weak", "strong"])
def test_views_of_one_name_are_equal(view):
    image = torch.randint(256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = {}
    for epoch in range(12):
        key = (0, epoch, "a")
        drawn = augment(image, view, key)
        assert torch.equal(seen.setdefault(name_view(view, key), drawn), drawn)
    assert len(seen) == {"none": 1, "weak": 2, "strong": 12}[view]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return save_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.mark.parametrize(
    ("views", "options"),
    [(("weak",), {}), (("weak", "strong"), {}), (("weak",), {"bf16": True}), (("weak",), {CHECKPOINTING: True})],
    ids=["weak", "strong", "bf16", "checkpointing"],
)
def test_members_trained_with_and_without_the_cache_are_equal(backbones, tmp_path, views, options):
    from safetensors.torch import load_file

    spec = MemberSpec(backbone=backbones[1], method=AdaptFormerConfig(bottleneck=4, blocks=[1]), drop_path=0.3)
    labeled, args = with_ids(draw_images(6, seed=0)), arguments(num_train_epochs=2, **options)
    tensors = []
    for cache in (None, FeatureCache(2**20)):
        folder = tmp_path / str(cache is None)
        train(spec, LABEL_NAMES, labeled, args, folder, views, "", cache=cache)
        tensors.append(load_file(folder / "adapter_model.safetensors"))
    assert len(cache) >= 6
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, rtol=2e-2 if options.get("bf16") else 1e-4, atol=1e-5)


def test_members_asked_together_answer_as_they_do_alone(backbones):
    methods = [AdaptFormerConfig(bottleneck=4, blocks=[1]), SSFConfig(blocks=[1]), SSFConfig()]
    models = [build_member(MemberSpec(backbone=backbones[1], method=m), LABEL_NAMES).eval() for m in methods]
    from peft_ensemble.fitting import load_processor

    processor = load_processor(MemberSpec(backbone=backbones[1], method=methods[0]))
    dataset = draw_images(10, seed=3)
    alone = [predict([model], processor, dataset, batch_size=4, tta=2)[0] for model in models]
    calls = []
    for model in models:
        model.get_base_model().dinov2.encoder.layer[0].mlp.fc1.register_forward_hook(lambda *args: calls.append(1))
    together = predict(models, processor, dataset, batch_size=4, tta=2)
    assert len(calls) == 2 * 3 * 2  # passes, batches, and one run for the two late members and one for the third
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one["logits"], other["logits"])
        assert torch.equal(one["features"], other["features"])
    assert alone[0]["features"].shape == (10, 64)


def test_models_of_one_backbone_share_its_memory(build_model, pixel_values):
    models = [get_peft_model(build_model("vit"), SSFConfig()).eval() for _ in range(2)]
    nn.init.zeros_(models[1].get_base_model().classifier.modules_to_save["default"].weight)
    expected = [model(pixel_values).logits for model in models]
    share_weights(models)
    assert all(torch.equal(model(pixel_values).logits, logits) for model, logits in zip(models, expected, strict=True))
    first, second = (model.get_base_model().vit.layers[0].mlp.fc1.base_layer.weight for model in models)
    assert first.data_ptr() == second.data_ptr()
