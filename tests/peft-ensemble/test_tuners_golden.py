"""Each method against its formula, written out on a ViT in plain torch, without the package's layers."""

import math

import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import conv2d, gelu, layer_norm, linear, pad, scaled_dot_product_attention
from transformers import DINOv3ViTConfig, DINOv3ViTModel, ViTConfig, ViTForImageClassification

from peft_ensemble import (
    AdaptFormerConfig,
    ConvPassConfig,
    DiffFitConfig,
    FacTConfig,
    HoulsbyConfig,
    PfeifferConfig,
    RepAdapterConfig,
    SharedLoraConfig,
    SSFConfig,
    VPTConfig,
)

D, HEADS, GRID = 32, 4, 4


class Reference:
    """A ViT by its state dict; a method overrides the places that it changes."""

    def __init__(self, state, method):
        self.w = {key.replace(".base_layer", ""): value for key, value in state.items()}
        self.method = method
        self.prefix = "vit."

    def get(self, name):
        return self.w[self.prefix + name]

    def op(self, name, x):
        """One linear layer or norm, then whatever the method does at that place."""
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        y = layer_norm(x, (D,), weight, bias, 1e-12) if "norm" in name else linear(x, weight, bias)
        return self.after(name, x, y)

    def after(self, name, x, y):
        return y

    def beside(self, name, h, block):
        return 0.0

    def attention(self, name, h):
        q, k, v = (self.op(f"{name}.attention.{p}_proj", h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in "qkv")
        return self.op(f"{name}.attention.o_proj", scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def mlp(self, name, h):
        return self.op(f"{name}.mlp.fc2", gelu(self.op(f"{name}.mlp.fc1", h)))

    def block(self, number, x):
        name = f"layers.{number}"
        h = self.op(f"{name}.layernorm_before", x)
        x = x + self.attention(name, h) + self.beside(f"{name}.attention", h, x)
        g = self.op(f"{name}.layernorm_after", x)
        return x + self.mlp(name, g) + self.beside(f"{name}.mlp", g, x)

    def patches(self, images):
        name = "embeddings.patch_embeddings.projection"
        y = conv2d(images, self.get(f"{name}.weight"), self.get(f"{name}.bias"), stride=8).flatten(2).transpose(1, 2)
        return self.after(name, images, y)

    def blocks(self, x):
        for number in range(2):
            x = self.block(number, x)
        return x

    def __call__(self, images):
        x = torch.cat([self.get("embeddings.cls_token").expand(len(images), -1, -1), self.patches(images)], dim=1)
        x = self.op("layernorm", self.blocks(x + self.get("embeddings.position_embeddings")))
        head = "classifier.modules_to_save.default."
        return linear(x[:, 0], self.w[head + "weight"], self.w[head + "bias"])

    def part(self, place, name):
        return self.w.get(f"{self.prefix}{place}.vis_{self.method}_{name}")


class SSF(Reference):
    def after(self, name, x, y):
        scale = self.part(name, "scale.default")
        assert scale is not None, name  # every operation has one
        return y * scale + self.part(name, "shift.default")


class DiffFit(Reference):
    def op(self, name, x):
        bias = self.part(name, "bias.default")
        weight = self.part(name, "weight.default")
        weight = self.get(f"{name}.weight") if weight is None else weight
        y = layer_norm(x, (D,), weight, bias, 1e-12) if "norm" in name else linear(x, weight, bias)
        gamma = self.part(name, "gamma.default")
        assert (gamma is not None) == name.endswith(("o_proj", "fc2"))
        return y if gamma is None else y * gamma

    def patches(self, images):
        name = "embeddings.patch_embeddings.projection"
        y = conv2d(images, self.get(f"{name}.weight"), self.part(name, "bias.default"), stride=8)
        return y.flatten(2).transpose(1, 2)


def bottleneck(ref, place, x, scale):
    low = linear(x, ref.part(place, "adapter.default.down.weight"), ref.part(place, "adapter.default.down.bias"))
    return scale * linear(
        low.clamp(min=0), ref.part(place, "adapter.default.up.weight"), ref.part(place, "adapter.default.up.bias")
    )


class AdaptFormer(Reference):
    def beside(self, name, h, x):
        return bottleneck(self, name, x, 0.3) if name.endswith("mlp") else 0.0


class Houlsby(Reference):
    def after(self, name, x, y):
        return y + bottleneck(self, name, y, 0.3) if name.endswith(("o_proj", "fc2")) else y


class Pfeiffer(Reference):
    def after(self, name, x, y):
        return y + bottleneck(self, name, y, 0.3) if name.endswith("fc2") else y


class RepAdapter(Reference):
    def after(self, name, x, y):
        if "layernorm_" not in name:
            return y
        part = lambda key: self.part(name, f"adapter.default.{key}")  # noqa: E731
        low = linear(y, part("down.weight"), part("down.bias"))
        up = part("up.weight")[..., 0]  # (D, r / 2): the first half of the channels reads the first half of r
        update = torch.cat([low[..., :2] @ up[: D // 2].T, low[..., 2:] @ up[D // 2 :].T], dim=-1)
        return y + 0.3 * (update + part("up.bias"))


class SharedLora(Reference):
    def after(self, name, x, y):
        if not name.endswith(("q_proj", "k_proj", "v_proj")):
            return y
        down = self.part(name.replace(name[-16:], "layernorm_before"), "A.default.weight")
        return y + 0.3 * x @ down.T @ self.part(name, "B.default.weight").T


class ConvPass(Reference):
    def beside(self, name, h, x):
        part = lambda key: self.part(name, f"adapter.default.{key}")  # noqa: E731
        act = lambda z: z * torch.sigmoid(1.702 * z)  # noqa: E731
        low = act(linear(h, part("down.weight"), part("down.bias")))
        image = low[:, 1:].reshape(len(h), GRID, GRID, -1)
        padded = pad(image, (0, 0, 1, 1, 1, 1))
        kernel, bias = part("conv.weight"), part("conv.bias")
        convolved = torch.zeros_like(image) + bias
        for row in range(3):
            for column in range(3):
                window = padded[:, row : row + GRID, column : column + GRID]
                convolved = convolved + window @ kernel[:, :, row, column].T
        first = conv2d(low[:, :1].transpose(1, 2)[..., None], kernel, bias, padding=1)[..., 0].transpose(1, 2)
        mixed = act(torch.cat([first, convolved.flatten(1, 2)], dim=1))
        return 0.3 * linear(mixed, part("up.weight"), part("up.bias"))


class FacT(Reference):
    def after(self, name, x, y):
        if not name.startswith("layers") or "norm" in name:
            return y
        holder = "layers.0.attention.q_proj"
        u, v = self.part(holder, "u.default"), self.part(holder, "v.default")
        core, sigma = self.part(holder, "core.default"), self.part(name, "sigma.default")
        matrices = []
        for index in range(2 if "mlp" in name else 1):
            if core is not None:
                matrix = torch.einsum("pqk,k->pq", core, sigma[:, index])
                matrix = matrix.T if name.endswith("fc2") else matrix
            else:
                matrix = sigma[0, index] if name.endswith("fc2") else sigma[index, 0]
            matrices.append(v @ matrix @ u)
        update = torch.cat(matrices, dim=1 if name.endswith("fc2") else 0)
        return y + 0.3 * x @ update.T


class VPT(Reference):
    deep = legacy = False

    def prompts(self, number, x):
        return self.part(f"layers.{number}", "prompts.default").expand(len(x), -1, -1)

    def blocks(self, x):
        if self.deep:
            for number in range(2):
                x = self.block(number, torch.cat([self.prompts(number, x), x], dim=1))[:, 3:]
            return x
        x = self.block(0, torch.cat([self.prompts(0, x), x], dim=1))
        return self.block(1, x[:, 3:]) if self.legacy else self.block(1, x)[:, 3:]


class DeepVPT(VPT):
    deep = True


class LegacyVPT(VPT):
    legacy = True


CASES = {
    "ssf": (SSF, SSFConfig()),
    "difffit": (DiffFit, DiffFitConfig()),
    "adaptformer": (AdaptFormer, AdaptFormerConfig(bottleneck=4, scale=0.3)),
    "houlsby": (Houlsby, HoulsbyConfig(bottleneck=4, scale=0.3)),
    "pfeiffer": (Pfeiffer, PfeifferConfig(bottleneck=4, scale=0.3)),
    "repadapter": (RepAdapter, RepAdapterConfig(bottleneck=4, scale=0.3)),
    "shared_lora": (SharedLora, SharedLoraConfig(r=4, scale=0.3)),
    "convpass": (ConvPass, ConvPassConfig(bottleneck=4, scale=0.3)),
    "fact_tt": (FacT, FacTConfig(r=4, scale=0.3)),
    "fact_tk": (FacT, FacTConfig(r=4, scale=0.3, decomposition="tk")),
    "vpt_shallow": (VPT, VPTConfig(num_prompts=3)),
    "vpt_deep": (DeepVPT, VPTConfig(num_prompts=3, deep=True)),
    "vpt_legacy": (LegacyVPT, VPTConfig(num_prompts=3, legacy_strip=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_method_is_its_formula(build_model, pixel_values, case):
    reference, config = CASES[case]
    model = get_peft_model(build_model("vit"), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        expected = reference(dict(model.base_model.model.state_dict()), config.name.removeprefix("vis_"))(pixel_values)
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-4, atol=1e-4)


def test_prompts_start_in_the_paper_s_range(build_model):
    model = get_peft_model(build_model("vit"), VPTConfig(num_prompts=50))
    prompts = model.base_model.model.vit.layers[0].vis_vpt_prompts["default"]
    bound = math.sqrt(6 / (3 * 8**2 + 32))
    assert bound * 0.95 < prompts.abs().max() <= bound


def test_convpass_finds_the_grid_or_asks_for_it():
    config = DINOv3ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=24, patch_size=8)
    build = lambda grid: get_peft_model(DINOv3ViTModel(config), ConvPassConfig(bottleneck=4, grid_size=grid))  # noqa: E731
    for size in (24, 32):  # as configured, and another square
        assert build(None)(torch.randn(2, 3, size, size)).last_hidden_state.shape[1] == 1 + size**2 // 64
    with pytest.raises(ValueError, match=r"expected 3 x 3 patches .* pass grid_size="):
        build(None)(torch.randn(2, 3, 16, 32))
    assert build((2, 4))(torch.randn(2, 3, 16, 32)).last_hidden_state.shape[1] == 9


def test_convpass_runs_on_a_configured_grid_that_is_not_square():
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=(16, 24), patch_size=8)
    model = get_peft_model(ViTForImageClassification(config), ConvPassConfig(bottleneck=4))
    assert model.base_model.model.vit.layers[0].mlp.grid == (2, 3)
    assert model(torch.randn(2, 3, 16, 24)).logits.shape == (2, 2)


def test_fact_refuses_sizes_that_are_no_multiple_of_the_width():
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=16)
    with pytest.raises(ValueError, match=r"multiples of the hidden size 32, got vit\.layers\.0\.mlp\.fc1"):
        get_peft_model(ViTForImageClassification(config), FacTConfig(r=4))


@pytest.mark.parametrize(
    "config", [DiffFitConfig(modules_to_save=[]), SSFConfig(modules_to_save=[])], ids=["replaces", "composes"]
)
def test_several_active_adapters(build_model, pixel_values, config):
    model = get_peft_model(build_model("vit"), config).eval()
    model.add_adapter("second", type(config)(modules_to_save=[]))
    model.base_model.set_adapter(["default", "second"])
    if isinstance(config, DiffFitConfig):
        with pytest.raises(ValueError, match="one adapter can be active at a time"):
            model(pixel_values)
    else:
        assert torch.isfinite(model(pixel_values).logits).all()
