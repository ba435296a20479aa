"""Figures over original images, and the questions that they answer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from prompt_cam import PromptCAMConfig, find_visible_box, get_prompt_cam_model
from support.tiny_vits import MLP, build_vit

pytest.importorskip("matplotlib")
CLIP = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    names = {0: "finch", 1: "heron", 2: "drake"}
    return get_prompt_cam_model(build_vit("vit"), PromptCAMConfig(num_classes=3, id2label=names)).eval()


def picture(width: int = 80, height: int = 40, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


@pytest.mark.parametrize(
    ("processor", "size", "box"),
    [
        (CLIP, (80, 40), (20.0, 0.0, 60.0, 40.0)),
        (CLIP, (40, 80), (0.0, 20.0, 40.0, 60.0)),
        (transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}), (80, 40), (0.0, 0.0, 80.0, 40.0)),
        (SimpleNamespace(do_resize=False, do_center_crop=False, size=None), (7, 9), (0.0, 0.0, 7.0, 9.0)),
        (
            SimpleNamespace(do_resize=False, do_center_crop=True, size=None, crop_size={"height": 20, "width": 30}),
            (20, 40),
            (-5.0, 10.0, 25.0, 30.0),
        ),
    ],
    ids=["wide", "tall", "squeezed", "as-is", "padded"],
)
def test_visible_box_undoes_the_processor(processor: Any, size: Any, box: Any) -> None:
    assert find_visible_box(processor, size) == pytest.approx(box)


def test_visible_box_agrees_with_what_the_processor_does() -> None:
    """A single bright square of the original has to lie where the box says in the processed pixels."""
    image = Image.new("RGB", (128, 64))
    image.paste((255, 255, 255), (64, 16, 80, 32))
    values = CLIP(images=image, return_tensors="pt")["pixel_values"][0, 0]
    rows, columns = torch.nonzero(values > values.mean() + values.std()).T
    left, top, right, bottom = find_visible_box(CLIP, image.size)
    x = left + (columns.float().mean() + 0.5) / 32 * (right - left)
    y = top + (rows.float().mean() + 0.5) / 32 * (bottom - top)
    assert (x.item(), y.item()) == pytest.approx((72, 24), abs=1)


def test_explain_shows_the_top_heads_of_the_predicted_class(model: Any) -> None:
    image = picture()
    inputs = CLIP(images=image, return_tensors="pt")
    predicted = int(model(**inputs).logits.argmax())
    order = model.rank_heads(**inputs).order[0].tolist()
    figure = model.explain(image, CLIP, top_heads=3)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith(model.prompt_config.id2label[predicted])
    assert titles[1:] == [f"head {head}" for head in order[:3]]
    overlay = figure.axes[1].get_images()[1]
    assert overlay.get_extent() == [20, 60, 40, 0]  # the crop, in pixels of the original
    assert (figure.axes[1].get_xlim(), figure.axes[1].get_ylim()) == ((0, 80), (40, 0))


def test_classes_are_compared_row_by_row(model: Any) -> None:
    figure = model.compare_classes(picture(), CLIP, [2, 0])
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 2 * 5
    assert titles[0].startswith("drake")
    assert titles[5].startswith("finch")


def test_counterfactual_tells_what_changed(model: Any) -> None:
    same = model.counterfactual(picture(), picture(), CLIP)
    assert not same.flipped
    assert same.probabilities[0] == pytest.approx(same.probabilities[1], abs=1e-6)
    other = model.counterfactual(picture(), picture(seed=1), CLIP)
    inputs = CLIP(images=[picture(), picture(seed=1)], return_tensors="pt")
    probabilities = model(**inputs).logits.softmax(1)
    assert other.classes == tuple(probabilities.argmax(1).tolist())
    assert other.probabilities[1] == pytest.approx(probabilities[1, other.classes[0]].item(), abs=1e-6)
    torch.testing.assert_close(other.maps, model.maps(**inputs, classes=other.classes[0]))
    assert other.to_dict()["flipped"] == (other.classes[0] != other.classes[1])
    assert len(other.figure.axes) == 10


def test_training_mode_is_kept_and_changes_nothing(model: Any) -> None:
    expected = model.counterfactual(picture(), picture(seed=1), CLIP).probabilities
    model.train()
    assert model.counterfactual(picture(), picture(seed=1), CLIP).probabilities == expected
    assert model.training


def test_bad_input_is_named(model: Any) -> None:
    with pytest.raises(TypeError, match="Tensor"):
        model.explain(torch.zeros(3, 32, 32), CLIP)
    with pytest.raises(ValueError, match="same size"):
        model.counterfactual(picture(), picture(40, 40), CLIP)
    with pytest.raises(ValueError, match="at least 1"):
        model.explain(picture(), CLIP, top_heads=0)
    with pytest.raises(ValueError, match="from 0 to 2"):
        model.explain(picture(), CLIP, target=3)


def test_processor_of_another_geometry_is_noticed(model: Any) -> None:
    wide = transformers.ViTImageProcessorPil(size={"height": 32, "width": 64})
    with pytest.raises(ValueError, match="doesn't match model"):
        model.explain(picture(), wide)
    assert MLP["image_size"] == 32
