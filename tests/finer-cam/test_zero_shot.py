"""Texts as classes in CLIP, SigLIP and SigLIP2."""

from typing import Any

import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from finer_cam import FinerCAM, ZeroShotFinerCAM, explain
from finer_cam.tail import backward
from support.tiny_classifiers import TOWER, build, pixels

WORDS = ["<pad>", "<end>", "bird", "red", "epaulets", "wing", "a", "photo", "of"]
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


class Processor:
    """Images as CLIP's processor makes them, texts by a tokenizer made here."""

    def __init__(self) -> None:
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = tf.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<end>", model_max_length=8
        )
        side = {"height": 32, "width": 32}
        self.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
        self.texts: list[str] = []
        self.padding: Any = None

    def __call__(self, images: Any = None, text: Any = None, padding: Any = None, **kwargs: Any) -> Any:
        if text is None:
            return self.image_processor(images, **kwargs)
        self.texts += text
        self.padding = padding
        return self.tokenizer([f"{one} <end>" for one in text], padding=padding, **kwargs)


def build_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "clip":
        text = {**TEXT, "vocab_size": 16, "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 8}
        config: Any = tf.CLIPConfig(text_config=text, vision_config=TOWER, projection_dim=16)
        return tf.CLIPModel(config).eval()
    text = {**TEXT, "vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    return tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=TOWER)).eval()


@pytest.fixture(params=["clip", "siglip"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build_model(request.param)


class Rows(nn.Module):
    """The same, written as a classifier whose rows are text embeddings."""

    def __init__(self, model: nn.Module, processor: Processor, texts: list[str], padding: Any):
        super().__init__()
        self.model = model
        inputs = processor.tokenizer([f"{one} <end>" for one in texts], padding=padding, return_tensors="pt")
        with torch.no_grad():
            self.rows = F.normalize(model.get_text_features(**inputs).pooler_output, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5 * F.normalize(self.model.get_image_features(pixel_values=x).pooler_output, dim=1) @ self.rows.T


def test_equals_a_classifier_whose_rows_are_texts(model: nn.Module) -> None:
    processor, x = Processor(), pixels(2, 32, 32)
    cam = ZeroShotFinerCAM(model, processor)
    out = cam(pixel_values=x, target=["red epaulets", "wing"], against="bird", gamma=0.8)
    padding = True if isinstance(model, tf.CLIPModel) else "max_length"
    assert processor.padding == padding
    other = FinerCAM(Rows(model, processor, ["red epaulets", "wing", "bird"], padding), gamma=0.8)
    expected = other(x, target=[[0, 1]] * 2, references=[2])
    torch.testing.assert_close(out.maps, expected.maps, atol=1e-4, rtol=0)
    assert out.maps.shape == (2, 2, 32, 32)
    inputs = processor.tokenizer(
        [f"{one} <end>" for one in ("red epaulets", "wing", "bird")], padding=padding, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs, pixel_values=x).logits_per_image
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)


def test_text_tower_runs_once_for_a_text_and_gets_no_gradient(model: nn.Module) -> None:
    processor, x = Processor(), pixels(1, 32, 32)
    cam = ZeroShotFinerCAM(model, processor, templates=["{}", "a photo of a {}"])
    for _ in range(2):
        cam(pixel_values=x, target="wing", against=["bird", "red"])
    assert sorted(processor.texts) == sorted(
        [form.format(text) for text in ("wing", "bird", "red") for form in ("{}", "a photo of a {}")]
    )
    assert all(weight.grad is None for weight in model.parameters())


def test_without_a_text_to_compare_with_it_is_the_base_map(model: nn.Module) -> None:
    cam, x = ZeroShotFinerCAM(model, Processor()), pixels(2, 32, 32)
    torch.testing.assert_close(
        cam(pixel_values=x, target="wing").maps,
        cam(pixel_values=x, target="wing", against="bird", gamma=0).maps,
        atol=1e-6,
        rtol=0,
    )


def test_concepts_of_one_call_equal_calls_for_each(model: nn.Module) -> None:
    cam, x = ZeroShotFinerCAM(model, Processor(), method="layercam"), pixels(2, 32, 32)
    joint = cam(pixel_values=x, target=["wing", "red"], against=["bird", "epaulets"])
    for number, text in enumerate(["wing", "red"]):
        alone = cam(pixel_values=x, target=text, against=["bird", "epaulets"])
        torch.testing.assert_close(joint.maps[:, number], alone.maps, atol=1e-5, rtol=0)


def test_images_go_through_the_processor_and_explain(model: nn.Module) -> None:
    processor = Processor()
    images = [Image.effect_noise((60, 40), 80).convert("RGB"), Image.effect_noise((40, 70), 80).convert("RGB")]
    out = ZeroShotFinerCAM(model, processor)(images, target="red epaulets", against="bird")
    assert [image.size for image in out.overlay(images)] == [(60, 40), (40, 70)]
    found = list(explain(model, processor, images, target="red epaulets", against="bird", progress=False))
    assert [(one.target_name, one.reference_names) for one in found] == [("red epaulets", ("bird",))] * 2
    torch.testing.assert_close(found[1].output.maps[0], out.maps[1], atol=1e-5, rtol=0)
    own = list(explain(model, processor, images, target=["wing", "red"], against=["bird"], progress=False))
    assert [one.target_name for one in own] == ["wing", "red"]
    against = list(explain(model, processor, images, target="red", against=[["bird"], ["wing", "a"]], progress=False))
    assert [one.reference_names for one in against] == [("bird",), ("wing", "a")]
    with pytest.raises(ValueError, match="must be a text for models such as CLIP, got 3"):
        list(explain(model, processor, images, target=3, progress=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_from_images(model: nn.Module, dtype: torch.dtype) -> None:
    images = [Image.effect_noise((60, 40), 80).convert("RGB")]
    expected = ZeroShotFinerCAM(model, Processor())(images, target="red epaulets", against="bird")
    out = ZeroShotFinerCAM(model.to(dtype), Processor())(images, target="red epaulets", against="bird")
    assert out.maps.dtype == torch.float32
    pair = torch.stack([out.maps.flatten(), expected.maps.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.98


def test_concepts_against_one_text_need_one_pass_each(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def count(*args: Any, **kwargs: Any) -> torch.Tensor:
        passes.append(kwargs)
        return backward(*args, **kwargs)

    monkeypatch.setattr("finer_cam.observing.backward", count)
    cam = ZeroShotFinerCAM(model, Processor())
    cam(pixel_values=pixels(2, 32, 32), target=["red", "wing", "epaulets"], against="bird")
    assert len(passes) == 3 + 1
    passes.clear()
    cam(pixel_values=pixels(2, 32, 32), target="red")
    assert len(passes) == 1


def test_text_to_compare_with_may_be_another_target(model: nn.Module) -> None:
    cam, x = ZeroShotFinerCAM(model, Processor()), pixels(2, 32, 32)
    out = cam(pixel_values=x, target=["red", "wing"], against=["wing", "bird"])
    assert out.references.tolist() == [[[1, 2], [-1, 2]]] * 2
    assert out.logits.shape == (2, 3)
    alone = cam(pixel_values=x, target="red", against=["wing", "bird"])
    torch.testing.assert_close(out.maps[:, 0], alone.maps, atol=1e-5, rtol=0)


def test_texts_of_a_model_in_training_are_not_random() -> None:
    model = build_model("clip")
    for layer in model.text_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    x, expected = pixels(1, 32, 32), ZeroShotFinerCAM(model, Processor())
    wanted = expected(pixel_values=x, target="wing", against="bird").logits
    out = ZeroShotFinerCAM(model.train(), Processor())(pixel_values=x, target="wing", against="bird")
    torch.testing.assert_close(out.logits, wanted)
    assert model.training


def test_score_cam_of_as_many_texts_as_images(model: nn.Module) -> None:
    cam, x = ZeroShotFinerCAM(model, Processor(), method="scorecam", top_channels=4), pixels(2, 32, 32)
    out = cam(pixel_values=x, target="wing", against="bird")
    for i in range(2):
        one = cam(pixel_values=x[i : i + 1], target="wing", against="bird")
        torch.testing.assert_close(one.maps[0], out.maps[i], atol=1e-4, rtol=0)


def test_siglip2_from_images() -> None:
    text = {**TEXT, "vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = tf.Siglip2Model(
        tf.Siglip2Config(text_config=text, vision_config={**TEXT, "patch_size": 8, "num_patches": 16})
    ).eval()
    processor = Processor()
    processor.image_processor = tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    images = [Image.effect_noise(size, 80).convert("RGB") for size in ((60, 30), (30, 60), (40, 40))]
    out = ZeroShotFinerCAM(model, processor)(images, target=["red", "wing"], against="bird")
    assert out.maps.shape[:2] == (3, 2)
    assert out.grid.tolist()[0] == out.grid.tolist()[1][::-1]
    found = list(explain(model, processor, images, target=["red", "wing", "red"], against="bird", progress=False))
    assert [one.overlay().size for one in found] == [(60, 30), (30, 60), (40, 40)]
    assert [one.target_name for one in found] == ["red", "wing", "red"]
    torch.testing.assert_close(found[2].output.maps[0], out.select(2).maps[0, 0], atol=1e-5, rtol=0)


def test_images_of_different_sizes_in_siglip2() -> None:
    text = {**TEXT, "vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    tower = {**TEXT, "patch_size": 8, "num_patches": 16}
    torch.manual_seed(0)
    model = tf.Siglip2Model(tf.Siglip2Config(text_config=text, vision_config=tower)).eval()
    shapes = torch.tensor([[2, 5], [4, 3]])
    mask = (torch.arange(16)[None] < shapes.prod(1, keepdim=True)).long()
    given = {"pixel_values": torch.randn(2, 16, 192), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    out = ZeroShotFinerCAM(model, Processor())(target="wing", against="bird", **given)
    assert [tuple(out.select(i).maps.shape) for i in range(2)] == [(1, 16, 40), (1, 32, 24)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"target": "wing", "against": "wing"}, "a text other than each of `target`"),
        ({"target": ["wing", "wing"]}, "must not name a text twice"),
        ({"target": ""}, "`target` must be a text"),
        ({"target": "wing", "images": [], "pixel_values": torch.zeros(1, 3, 32, 32)}, "got both"),
        ({"target": "wing", "pixel_values": None}, "got none"),
    ],
)
def test_bad_calls(call: dict[str, Any], message: str) -> None:
    cam = ZeroShotFinerCAM(build_model("clip"), Processor())
    with pytest.raises(ValueError, match=message):
        cam(**{"pixel_values": pixels(1, 32, 32), **call})


def test_bad_models_and_options() -> None:
    with pytest.raises(ValueError, match="use `FinerCAM` for classifiers"):
        ZeroShotFinerCAM(build("vit"), Processor())
    with pytest.raises(ValueError, match="`templates` must be"):
        ZeroShotFinerCAM(build_model("clip"), Processor(), templates="a photo")
    with pytest.raises(ValueError, match=r"\['num_references', 'weighting'\] do not apply"):
        ZeroShotFinerCAM(build_model("clip"), Processor(), weighting="softmax", num_references=2)
    with pytest.raises(ValueError, match="`method` must be one of"):
        ZeroShotFinerCAM(build_model("clip"), Processor(), method="lime")
