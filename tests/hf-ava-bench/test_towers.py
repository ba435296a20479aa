"""Which tokens are patches: asserted for the layout of every family in the spec (section 5)."""

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from hf_ava_bench import load_ability
from hf_ava_bench.runner.encoders import KNOWN_ENCODERS, KnownEncoder
from hf_ava_bench.runner.features import compute_features
from hf_ava_bench.runner.head import AvaHead, Prompts
from hf_ava_bench.runner.tiny import build_tiny_llm
from hf_ava_bench.runner.towers import TokenLayout, VisionTower, find_layout, pool_tokens

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS = {"image_size": 32, "patch_size": 8}
FOUR_REGISTERS = {"num_register_tokens": 4}


def build(name, config, **settings):
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()


FAMILIES = {
    "vit": (lambda: build("ViTModel", "ViTConfig", **SMALL, **PIXELS), 1),
    "clip": (lambda: build("CLIPVisionModel", "CLIPVisionConfig", **SMALL, **PIXELS), 1),
    "siglip": (lambda: build("SiglipVisionModel", "SiglipVisionConfig", **SMALL, **PIXELS), 0),
    "dinov2": (lambda: build("Dinov2Model", "Dinov2Config", **SMALL, **PIXELS), 1),
    "dinov2-registers": (
        lambda: build("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **FOUR_REGISTERS, **SMALL, **PIXELS),
        5,
    ),
    "dinov3": (lambda: build("DINOv3ViTModel", "DINOv3ViTConfig", **FOUR_REGISTERS, **SMALL, **PIXELS), 5),
    "aimv2": (lambda: build("Aimv2VisionModel", "Aimv2VisionConfig", **SMALL, **PIXELS), 0),
    "internvl": (
        lambda: build("InternVLVisionModel", "InternVLVisionConfig", **SMALL, image_size=[32, 32], patch_size=[8, 8]),
        1,
    ),
    "radio": (lambda: build("RadioModel", "RadioConfig", **SMALL, **PIXELS), 10),
    "dpt": (
        lambda: build(
            "DPTModel", "DPTConfig", **SMALL, **PIXELS, backbone_out_indices=[0, 1, 1, 1], neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=8,
        ),
        1,
    ),
    "siglip2": (lambda: build("Siglip2VisionModel", "Siglip2VisionConfig", **SMALL, patch_size=8, num_patches=16), 0),
    "deit": (lambda: build("DeiTModel", "DeiTConfig", **SMALL, **PIXELS), 2),
    "beit": (lambda: build("BeitModel", "BeitConfig", **SMALL, **PIXELS), 1),
    "vit-mae": (lambda: build("ViTMAEModel", "ViTMAEConfig", mask_ratio=0.0, **SMALL, **PIXELS), 1),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_of_each_family_are_found_and_the_first_is_kept(family):
    make, num_prefix = FAMILIES[family]
    tower = VisionTower(make(), image_size=32)
    pixels = torch.randn(2, 3, 32, 32, requires_grad=True)
    tokens = tower.features(pixels)
    assert tokens.shape == (2, 16, 32)
    assert tower.layout == TokenLayout(num_prefix, 4, 4)
    # Token 0 is what the first patch was before attention mixed it: no other token answers more to its pixels.
    first = VisionTower(tower.model, layer=0).features(pixels)
    (gradient,) = torch.autograd.grad((first[0, 0] * torch.arange(32)).sum(), pixels)
    assert gradient[0, :, :8, :8].abs().sum() > 0
    assert gradient[0, :, 8:, :].abs().sum() == 0
    assert gradient[0, :, :, 8:].abs().sum() == 0


def test_patches_of_a_masked_autoencoder_stay_in_their_order(tmp_path):
    model = build("ViTMAEModel", "ViTMAEConfig", **SMALL, **PIXELS)
    pixels = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"gives 5 tokens, which are not 1 class and register tokens and a grid of 4"):
        VisionTower(model).features(pixels)  # three in four are masked
    model.save_pretrained(tmp_path)
    tower = VisionTower(str(tmp_path))
    assert torch.equal(tower.features(pixels), tower.features(pixels))


def test_hybrid_of_dpt_has_a_class_token_before_the_grid_of_its_convolutions():
    backbone = transformers.BitConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="bottleneck", global_padding="same",
        out_features=["stage1", "stage2", "stage3"], embedding_dynamic_padding=True, num_groups=4,
    )  # fmt: skip
    model = build(
        "DPTModel", "DPTConfig", **SMALL, image_size=32, patch_size=16, is_hybrid=True, backbone_config=backbone,
        neck_hidden_sizes=[8] * 4, backbone_featmap_shape=[1, 32, 2, 2], neck_ignore_stages=[0, 1],
    )  # fmt: skip
    tower = VisionTower(model)
    assert tower.features(torch.randn(1, 3, 32, 32)).shape == (1, 4, 32)
    assert tower.layout == TokenLayout(1, 2, 2)


def test_maps_of_a_convolutional_tower_become_tokens_row_by_row():
    config = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32)
    tower = VisionTower(transformers.ConvNextModel(config).eval(), layer=-1)
    tokens = tower.features(torch.randn(1, 3, 32, 32))
    assert tokens.shape == (1, 16, 16)
    assert tower.layout == TokenLayout(0, 4, 4)


def test_tower_of_timm_through_its_wrapper():
    pytest.importorskip("timm", reason="the wrapper needs timm, which no package here requires")
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args={"img_size": 32, "patch_size": 8, "depth": 2}
    )
    tower = VisionTower(transformers.TimmWrapperModel(config).eval(), image_size=32, layout=TokenLayout(1, 4, 4))
    assert tower.features(torch.randn(1, 3, 32, 32)).shape[:2] == (1, 16)


def test_towers_without_what_is_needed_are_refused():
    resnet = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="ResNetModel has no `image_size` in its config; pass `image_size`"):
        VisionTower(resnet)

    class SilentTower(transformers.ViTModel):
        def forward(self, pixel_values, output_hidden_states):
            return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=self.embeddings(pixel_values))

    silent = SilentTower(transformers.ViTConfig(**SMALL, **PIXELS))
    with pytest.raises(ValueError, match="Expected hidden states from SilentTower, got none"):
        VisionTower(silent).features(torch.randn(1, 3, 32, 32))


def test_maps_of_sam_are_flattened():
    config = transformers.SamVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_dim=64, image_size=32, patch_size=8,
        output_channels=16, global_attn_indexes=[1], window_size=2,
    )  # fmt: skip
    tower = VisionTower(transformers.SamVisionModel(config).eval(), image_size=32)
    assert tower.features(torch.randn(1, 3, 32, 32)).shape == (1, 16, 32)
    assert tower.layout == TokenLayout(0, 4, 4)


def test_tokens_of_hiera_are_in_the_order_of_the_image():
    config = transformers.HieraConfig(
        embed_dim=16, image_size=[32, 32], depths=[1, 1], num_heads=[1, 2], query_stride=[2, 2],
        masked_unit_size=[2, 2], num_query_pool=1,
    )  # fmt: skip
    torch.manual_seed(0)
    tower = VisionTower(transformers.HieraModel(config).eval(), image_size=32, layer=0)
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    tokens = tower.features(pixels)
    assert tower.layout == TokenLayout(0, 8, 8)
    (gradient,) = torch.autograd.grad((tokens[0, 1] * torch.arange(16)).sum(), pixels)
    seen = gradient[0].abs().sum(dim=0).nonzero()
    assert seen[:, 0].max() < 8  # the second token is the second of the first row
    assert seen[:, 1].min() > 0
    assert seen[:, 1].max() < 12


def test_random_tower_differs_in_weights_only():
    tower = VisionTower(FAMILIES["clip"][0](), image_size=32, token_budget=4, layer=-1)
    state = torch.get_rng_state()
    other, again = tower.randomize(seed=1), tower.randomize(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    image = Image.new("RGB", (32, 32), (10, 200, 30))
    left, right = (which.encode([image], [""]) for which in (tower, other))
    assert left.shape == right.shape == (1, 4, 32)
    assert not torch.allclose(left, right)
    assert other.key == again.key != tower.key


def test_cached_and_fresh_tokens_give_one_loss(tmp_path):
    table = load_ability("scene", "mini", "test", n=4, image_size=32)
    tower = VisionTower(FAMILIES["vit"][0](), image_size=32)
    fresh = tower.encode(table["image"][:], table["answer"][:])
    for _ in range(2):  # written, then read
        cached = compute_features(table, tower, tmp_path, dtype=torch.float32, progress=False)
    half = compute_features(table, tower, tmp_path, progress=False)
    model, tokenizer = build_tiny_llm(32, 1)
    head, prompts = AvaHead(model, 32).eval(), Prompts(tokenizer, 16, "", 128)
    batch = prompts.collate([prompts.encode(row["question"], row["answer"]) for row in table])
    losses = [head(features=tokens, **batch)["loss"].item() for tokens in (fresh, cached, half)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == pytest.approx(losses[0], abs=1e-3)  # as stored by default


def test_tokens_that_do_not_add_up_are_refused():
    model = FAMILIES["vit"][0]()
    with pytest.raises(
        ValueError, match="gives 20 tokens, which are not 1 class and register tokens and a grid of 4 x 4"
    ):
        find_layout(model, 20, (32, 32))
    resnet = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(ValueError, match="has no `patch_size`"):
        find_layout(resnet, 17, (32, 32))


def test_budget_pools_the_grid_by_areas():
    grid = torch.arange(16.0).view(1, 16, 1)
    pooled = pool_tokens(grid, TokenLayout(0, 4, 4), 4)
    assert pooled.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_tokens(grid, TokenLayout(0, 4, 4), 16) is grid
    with pytest.raises(ValueError, match="square number, got 5"):
        pool_tokens(grid, TokenLayout(0, 4, 4), 5)


def test_all_of_an_image_is_seen_whatever_its_shape():
    tower = VisionTower(FAMILIES["clip"][0](), image_size=32)
    image = Image.new("RGB", (200, 50))
    image.paste((255, 255, 255), (0, 0, 20, 50))  # at the far left, where a centre crop does not look
    pixels = tower.preprocess([image])
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, :, :, :2].min() > 0.9


def test_key_changes_with_weights_layer_and_resolution():
    model = FAMILIES["vit"][0]()
    keys = {VisionTower(model).key, VisionTower(model, layer=-1).key, VisionTower(model, token_budget=4).key}
    with torch.no_grad():
        next(model.parameters()).add_(1)
    keys.add(VisionTower(model).key)
    assert len(keys) == 4
    assert VisionTower(model).key == VisionTower(model).key


def test_key_of_a_checkpoint_without_a_pooler_is_the_same_each_time(tmp_path):
    FAMILIES["vit"][0]().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert VisionTower(str(tmp_path)).key == VisionTower(str(tmp_path)).key


def test_cached_tokens_equal_fresh_ones_and_the_tower_is_not_asked_again(tmp_path, monkeypatch):
    table = load_ability("scene", "mini", "test", n=10, image_size=32)
    tower = VisionTower(FAMILIES["vit"][0](), image_size=32)
    fresh = compute_features(table, tower, progress=False)
    stored = compute_features(table, tower, tmp_path, progress=False)
    monkeypatch.setattr(tower, "encode", lambda *args: pytest.fail("the tower was asked again"))
    assert torch.equal(compute_features(table, tower, tmp_path, progress=False), stored)
    assert torch.equal(fresh, stored)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("name", [*KNOWN_ENCODERS, "oracle"])
def test_known_encoders_have_64_tokens(name):
    image = Image.new("RGB", (96, 96), (10, 200, 30))
    tokens = KnownEncoder(name).encode([image, image], ["left", "right"])
    assert tokens.shape[:2] == (2, 64)
    assert torch.isfinite(tokens).all()
    assert (tokens[0] == tokens[1]).all() == (name != "oracle")


def test_edge_histogram_is_blind_to_color_and_patch_colors_to_edges():
    red, blue = (Image.new("RGB", (64, 64), color) for color in ((200, 0, 0), (0, 0, 200)))
    assert torch.equal(KnownEncoder("edge-hist").encode([red], [""]), KnownEncoder("edge-hist").encode([blue], [""]))
    stripes = Image.new("RGB", (64, 64))
    for x in range(0, 64, 4):
        stripes.paste((255, 255, 255), (x, 0, x + 2, 64))
    across = stripes.transpose(Image.Transpose.ROTATE_90)
    patch = [KnownEncoder("patch-colour").encode([image], [""]) for image in (stripes, across)]
    edges = [KnownEncoder("edge-hist").encode([image], [""]) for image in (stripes, across)]
    torch.testing.assert_close(*patch)
    assert not torch.allclose(*edges)


def test_unknown_encoder():
    with pytest.raises(ValueError, match=r"patch-colour.*got 'best'"):
        KnownEncoder("best")
    assert isinstance(FAMILIES["vit"][0](), nn.Module)
