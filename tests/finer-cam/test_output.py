"""What an output gives: overlays on original images, regions, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    Siglip2Config,
    Siglip2ForImageClassification,
    ViTImageProcessorPil,
)

from finer_cam import FinerCAM
from finer_cam.drawing import INFERNO, blend, colorize, to_image, to_tensor
from finer_cam.geometry import to_original
from support.tiny_classifiers import build, pixels

PROCESSORS = {
    "exact": ViTImageProcessorPil(size={"height": 32, "width": 48}),
    "shortest edge and crop": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_normalize=False
    ),
    "crop larger than the image": CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 36, "width": 36}, do_normalize=False
    ),
    "crop_pct": ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.8),
    "crop_pct of large sizes": ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=0.9),
}


@pytest.mark.parametrize("size", [(60, 80), (81, 50), (64, 64)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_map_lies_where_the_processor_took_its_pixels_from(name: str, size: tuple[int, int]) -> None:
    """A ramp goes through the processor and back: what returns is the ramp, and NaN where it was cut off."""
    width, height = size
    ramp = torch.linspace(20, 230, width)[None].expand(height, -1) if width >= height else None
    ramp = torch.linspace(20, 230, height)[:, None].expand(-1, width) if ramp is None else ramp
    image = to_image(ramp[..., None].expand(-1, -1, 3))
    processor = PROCESSORS[name]
    processed = processor(images=image, return_tensors="pt", do_normalize=False)["pixel_values"][0, 0] * 255
    back = to_original(processed, size, processor)
    assert back.shape == (height, width)
    seen = ~back.isnan()
    if name == "shortest edge and crop":  # 32 of 40 pixels are left of the shorter side
        assert int(seen.any(dim=int(width >= height)).sum()) == pytest.approx(0.8 * min(size), abs=2)
    for axis in (0, 1):  # a centred box: as much is missing before it as after
        places = seen.any(dim=1 - axis).nonzero().flatten()
        assert int(places[0]) == pytest.approx(size[1 - axis] - 1 - int(places[-1]), abs=4)
    inner = seen.clone()
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False  # filters see an edge
    assert float((back - ramp)[inner].abs().max()) < 7  # of 210; one pixel is 3 to 4


def test_wrong_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="makes 32 x 32 pixels of an image of 50 x 60, but the maps have 16 x 16"):
        to_original(torch.zeros(16, 16), (60, 50), PROCESSORS["shortest edge and crop"])
    with pytest.raises(ValueError, match=r"give `FinerCAM\(..., processor=processor\)`"):
        to_original(torch.zeros(16, 16), (60, 50), None)
    assert to_original(torch.ones(16, 20), (20, 16), None).min() == 1


def test_overlay_leaves_what_was_cut_off_as_it_is() -> None:
    model, processor = build("resnet"), PROCESSORS["shortest edge and crop"]
    images = [Image.effect_noise((80, 50), 60).convert("RGB"), Image.effect_noise((40, 90), 60).convert("RGB")]
    out = FinerCAM(model, processor=processor)(**processor(images=images, return_tensors="pt"))
    for image, shown, places in zip(images, out.overlay(images), out.to_original(images), strict=True):
        before, after, hidden = to_tensor(image), to_tensor(shown), places.isnan()
        assert shown.size == image.size
        assert hidden.any()
        assert torch.equal(before[hidden], after[hidden])
        assert not torch.equal(before[~hidden], after[~hidden])
    with pytest.raises(ValueError, match="one image for each of the 2 maps, got 1"):
        out.overlay(images[:1])
    with pytest.raises(ValueError, match="draws one map for each image"):
        out.regamma([0, 1]).overlay(images)
    with pytest.raises(ValueError, match="`alpha`"):
        out.overlay(images, alpha=2)


def test_colours() -> None:
    ends = colorize(torch.tensor([[0.0, 1.0, 1.5]])).round()[0].tolist()
    assert ends == [list(INFERNO[0]), list(INFERNO[-1]), list(INFERNO[-1])]
    lightness = colorize(torch.linspace(0, 1, 50)[None])[0].sum(1)
    assert bool((lightness.diff() > 0).all())
    white = Image.new("RGB", (2, 1), "white")
    half = blend(white, torch.tensor([[0.0, float("nan")]]), "inferno", 0.5)
    assert [half.getpixel((i, 0)) for i in range(2)] == [(128, 128, 130), (255, 255, 255)]


def test_colormap_of_matplotlib() -> None:
    pytest.importorskip("matplotlib")
    assert colorize(torch.tensor([[1.0]]), "gray").tolist() == [[[255.0, 255.0, 255.0]]]
    with pytest.raises(ValueError, match="'inferno' or a colormap of matplotlib, got 'mud'"):
        colorize(torch.tensor([[1.0]]), "mud")


def test_top_region_has_exactly_so_many_pixels(tiny_vit: nn.Module) -> None:
    out = FinerCAM(tiny_vit)(pixels())
    region = out.top_region(0.05)
    assert region.sum(dim=(1, 2)).tolist() == [76, 76]  # floor(0.05 * 32 * 48)
    for one, inside in zip(out.maps, region, strict=True):
        assert float(one[inside].min()) >= float(one[~inside].max())
    with pytest.raises(ValueError, match=r"`ratio` must be in \[0, 1\]"):
        out.top_region(5)


def test_saved_file_has_all_tensors(tiny_vit: nn.Module, tmp_path: Path) -> None:
    out = FinerCAM(tiny_vit, gamma=[0.0, 0.6])(pixels())
    (tmp_path / "maps.part").write_text("the user's")
    out.save(tmp_path / "maps.safetensors")
    with safe_open(tmp_path / "maps.safetensors", "pt") as file:
        assert file.metadata() == {"method": "gradcam", "path": "autograd"}
        for name in ("maps", "raw", "grid", "logits", "target", "references", "weights", "is_empty"):
            assert torch.equal(file.get_tensor(name), getattr(out, name))
        assert file.get_tensor("gamma").tolist() == pytest.approx([0.0, 0.6])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.part", "maps.safetensors"]
    assert (tmp_path / "maps.part").read_text() == "the user's"
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        out.save(tmp_path / "maps.npz")


def test_dictionary_is_json(tiny_vit: nn.Module) -> None:
    found: dict[str, Any] = json.loads(json.dumps(FinerCAM(tiny_vit)(pixels()).to_dict()))
    assert {"raw", "target", "references", "weights", "gamma", "path", "method", "is_empty"} <= found.keys()
    assert found["gamma"] == [0.6]


def test_map_that_nothing_speaks_for_is_zero_and_says_so(tiny_resnet: nn.Module) -> None:
    """Two equal classes but for a bias: at gamma 2 the objective is minus the class' own score."""
    with torch.no_grad():
        tiny_resnet.classifier[1].weight[1] = tiny_resnet.classifier[1].weight[0]
        tiny_resnet.classifier[1].weight[:2].abs_()
    out = FinerCAM(tiny_resnet)(pixels(), target=0, references=[1], gamma=[0.5, 1.0, 2.0])
    assert out.is_empty.tolist() == [[False, True, True]] * 2
    assert float(out.maps[:, 1:].abs().max()) == 0.0
    assert bool(torch.isfinite(out.maps).all())


def test_one_image_of_an_output(tiny_vit: nn.Module) -> None:
    out = FinerCAM(tiny_vit)(pixels(), target=[[0, 1], [2, 3]])
    one = out.select(1)
    assert torch.equal(one.maps[0], out.maps[1])
    assert one.target.tolist() == [[2, 3]]
    assert torch.equal(one.regamma(1.5).maps[0], out.regamma(1.5).maps[1])


@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam"])
def test_one_image_is_a_copy(tiny_vit: nn.Module, method: str) -> None:
    out = FinerCAM(tiny_vit, method=method)(pixels())
    last, one = out.select(-1), out.select(0)
    assert torch.equal(last.maps[0], out.maps[1])
    assert last.evidence.sizes == ((32, 48),)
    assert torch.equal(last.regamma(1.5).maps[0], out.regamma(1.5).maps[1])
    whole = {tensor.untyped_storage().data_ptr() for tensor in (out.maps, out.raw, out.logits, out.evidence.parts)}
    copies = {tensor.untyped_storage().data_ptr() for tensor in (one.maps, one.raw, one.logits, one.evidence.parts)}
    assert not whole & copies
    assert one.maps.untyped_storage().nbytes() * 2 == out.maps.untyped_storage().nbytes()
    with pytest.raises(IndexError):
        out.select(2)
    assert out != out.regamma(0.6)  # compared by identity: tensors have no single truth


@pytest.mark.parametrize("method", ["gradcam", "layercam", "gradcam++"])
def test_one_image_of_a_padded_batch_has_no_padding(method: str) -> None:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = Siglip2Config(vision_config={**tower, "patch_size": 8, "num_patches": 16})
    config.num_labels = 4
    model = Siglip2ForImageClassification(config).eval()
    shapes = torch.tensor([[2, 5], [4, 3]])
    mask = (torch.arange(16)[None] < shapes.prod(1, keepdim=True)).long()
    given = {"pixel_values": torch.randn(2, 16, 192), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    out = FinerCAM(model, method=method)(**given, target=0, references=[1])
    for i, shape in enumerate(shapes.tolist()):
        one = out.select(i)
        for strength in (one, one.regamma(1.0)):
            assert strength.raw.shape == (1, *shape)
            assert strength.maps.shape == (1, 8 * shape[0], 8 * shape[1])
        wanted = out.regamma(1.0).maps[i, : 8 * shape[0], : 8 * shape[1]]
        torch.testing.assert_close(one.regamma(1.0).maps[0], wanted)
