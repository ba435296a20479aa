"""Figures over original images, and the questions that they answer."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from prompt_cam import PromptCAMConfig, find_visible_box, get_prompt_cam_model
from support.planted import build_random_vit
from support.tiny_vits import build_vit

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
    figure = model.compare_classes(picture(), [2, 0], CLIP)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 2 * 5
    assert titles[0].startswith("drake")
    assert titles[5].startswith("finch")


def test_edit_that_changes_nothing(model: Any) -> None:
    same = model.counterfactual(picture(), picture(), CLIP)
    assert not same.flipped
    assert same.probabilities[0] == pytest.approx(same.probabilities[1], abs=1e-6)


def find_flip(model: Any) -> tuple[Image.Image, Image.Image]:
    """Two images of different classes."""
    images = [picture(seed=seed) for seed in range(20)]
    guesses = model(**CLIP(images=images, return_tensors="pt")).logits.argmax(1)
    other = next(index for index in range(20) if guesses[index] != guesses[0])
    return images[0], images[other]


def test_counterfactual_tells_what_changed(model: Any) -> None:
    model = get_prompt_cam_model(build_random_vit(), model.prompt_config).eval()  # its scores depend on the image
    before, after = find_flip(model)
    edit = model.counterfactual(before, after, CLIP)
    inputs = CLIP(images=[before, after], return_tensors="pt")
    probabilities = model(**inputs).logits.softmax(1)
    assert edit.flipped
    assert edit.classes == tuple(probabilities.argmax(1).tolist())
    assert edit.names == tuple(model.prompt_config.id2label[index] for index in edit.classes)
    for image in (0, 1):
        assert edit.probabilities[image] == pytest.approx(probabilities[image, edit.classes[0]].item(), abs=1e-6)
    assert edit.probabilities[1] < edit.probabilities[0]
    torch.testing.assert_close(edit.maps, model.maps(**inputs, classes=edit.classes[0]))
    assert edit.order == model.rank_heads(**inputs, classes=edit.classes[0]).order[0].tolist()
    plain = edit.to_dict()
    assert json.loads(json.dumps(plain))["flipped"] is True
    assert set(plain) == {"classes", "names", "probabilities", "order", "flipped"}


def test_edit_is_drawn_on_request_only(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = model.counterfactual(picture(), picture(seed=1), CLIP)
    figure = edit.draw(top_heads=2)
    titles = [axes.get_title() for axes in figure.axes]
    heads = [f"head {head}" for head in edit.order[:2]]
    assert titles[1:3] == titles[4:6] == heads
    assert titles[3].startswith("edited: ")
    with pytest.raises(ValueError, match="at least 1"):
        edit.draw(top_heads=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    again = model.counterfactual(picture(), picture(seed=1), CLIP)  # needs no matplotlib
    with pytest.raises(ImportError, match=r"prompt-cam\[plots\]"):
        again.draw()
    with pytest.raises(ImportError, match=r"prompt-cam\[plots\]"):
        model.explain(picture(), CLIP)


@pytest.mark.parametrize("question", ["explain", "compare", "edit"])
def test_questions_take_one_forward(model: Any, question: str) -> None:
    images: list[int] = []
    model.backbone.embeddings.register_forward_hook(lambda module, args, output: images.append(len(output)))
    if question == "explain":
        model.explain(picture(), CLIP)
    elif question == "compare":
        model.compare_classes(picture(), [0, 1, 2], CLIP)
    else:
        model.counterfactual(picture(), picture(seed=1), CLIP)
    assert images == [2 if question == "edit" else 1]


def test_images_of_siglip2_keep_their_aspect() -> None:
    """Padding of the processor is left out of the maps, which have the grid of the image."""
    torch.manual_seed(0)
    model = get_prompt_cam_model(build_vit("siglip2_vision_model"), PromptCAMConfig(num_classes=3)).eval()
    processor = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    inputs = processor(images=picture(), return_tensors="pt")
    rows, columns = inputs["spatial_shapes"][0].tolist()
    assert rows * columns < 16
    assert columns > rows
    assert model.maps(**inputs, classes=1).shape == (1, 4, rows, columns)
    overlay = model.explain(picture(), processor).figure.axes[1].get_images()[1]
    assert overlay.get_extent() == [0, 80, 40, 0]
    assert model.counterfactual(picture(), picture(seed=1), processor).maps.shape == (2, 4, rows, columns)


def test_grey_images_stay_grey(model: Any) -> None:
    shown = model.explain(picture().convert("L"), CLIP).axes[0].get_images()[0].get_array()
    assert shown.shape == (40, 80, 3)
    assert (shown[..., 0] == shown[..., 2]).all()


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
    with pytest.raises(ValueError, match="at least one class"):
        model.compare_classes(picture(), [], CLIP)
    with pytest.raises(TypeError, match="image processor of the backbone, got list"):
        model.compare_classes(picture(), CLIP, [0])


def test_processor_of_another_geometry_is_noticed(model: Any) -> None:
    wide = transformers.ViTImageProcessorPil(size={"height": 32, "width": 64})
    with pytest.raises(ValueError, match="doesn't match model"):
        model.explain(picture(), wide)
