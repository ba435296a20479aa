"""Many images, of any kind, one batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViTImageProcessorPil

from finer_cam import FinerCAM, explain
from support.tiny_classifiers import build

SIZES = [(60, 40), (40, 70), (50, 50), (33, 48), (90, 30)]


@pytest.fixture
def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 32, "width": 48})


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.effect_noise(size, 90).convert("RGB") for size in SIZES]


def test_any_kind_of_images_gives_the_same_maps(
    tiny_vit: nn.Module, processor: Any, images: list[Image.Image], tmp_path: Path
) -> None:
    import datasets

    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    rows = datasets.Dataset.from_dict({"picture": [str(path) for path in paths]})
    rows = rows.cast_column("picture", datasets.Image())
    expected = FinerCAM(tiny_vit)(**processor(images=images, return_tensors="pt"))
    sources: list[tuple[Any, dict[str, Any]]] = [
        (images, {}),
        (paths, {}),
        ([str(path) for path in paths], {}),
        (iter(images), {}),
        (rows, {"image_column": "picture"}),
        (rows.to_iterable_dataset(), {"image_column": "picture"}),
    ]
    for source, options in sources:
        found = list(explain(tiny_vit, processor, source, batch_size=2, progress=False, **options))
        assert [one.index for one in found] == [0, 1, 2, 3, 4]
        assert [one.overlay().size for one in found] == SIZES
        for one, maps, target in zip(found, expected.maps, expected.target, strict=True):
            torch.testing.assert_close(one.output.maps[0], maps, atol=1e-5, rtol=0)
            assert one.target_name == f"LABEL_{int(target)}"
    (single,) = explain(tiny_vit, processor, images[0], progress=False)
    torch.testing.assert_close(single.output.maps[0], expected.maps[0], atol=1e-5, rtol=0)


def test_images_are_read_when_they_are_needed(tiny_vit: nn.Module, processor: Any, images: list[Image.Image]) -> None:
    read = []

    def source() -> Iterator[Image.Image]:
        for index in range(1000):
            read.append(index)
            yield images[index % 5]

    found = explain(tiny_vit, processor, source(), batch_size=3, progress=False)
    assert read == []
    next(found)
    assert read == [0, 1, 2]


def test_targets_of_each_image(tiny_vit: nn.Module, processor: Any, images: list[Image.Image]) -> None:
    targets = [0, 1, "LABEL_2", 3, 4]
    options: dict[str, Any] = {"against": [5, 6], "batch_size": 2, "progress": False, "method": "layercam"}
    found = list(explain(tiny_vit, processor, images, target=targets, **options))
    assert [one.target_name for one in found] == [f"LABEL_{i}" for i in range(5)]
    assert {one.reference_names for one in found} == {("LABEL_5", "LABEL_6")}
    assert {one.output.evidence.options.method for one in found} == {"layercam"}


def test_unreadable_image_is_named_or_skipped(
    tiny_vit: nn.Module,
    processor: Any,
    images: list[Image.Image],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    source = [images[0], broken, images[2]]
    with pytest.raises(ValueError, match=r"image 1 cannot be read.*on_error='skip'"):
        list(explain(tiny_vit, processor, source, progress=False))
    found = list(explain(tiny_vit, processor, source, target=[3, 4, 5], on_error="skip", progress=False))
    assert [(one.index, one.target_name) for one in found] == [(0, "LABEL_3"), (2, "LABEL_5")]
    assert "Skipped image 1" in caplog.text
    with pytest.raises(ValueError, match="expected a column 'image', got \\['photo'\\]"):
        list(explain(tiny_vit, processor, [{"photo": images[0]}], progress=False))


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_targets_and_references_of_each_image(
    tiny_vit: nn.Module, processor: Any, images: list[Image.Image], kind: Any
) -> None:
    targets, against = [0, 1, 2, 3, 4], [[1, 2], [2, 3], [3, 5], [5, 6], [6, 0]]
    whole = FinerCAM(tiny_vit)(**processor(images=images, return_tensors="pt"), target=targets, references=against)
    options: dict[str, Any] = {"batch_size": 2, "progress": False}
    found = list(explain(tiny_vit, processor, images, target=kind(targets), against=kind(against), **options))
    for one, maps, names in zip(found, whole.maps, against, strict=True):
        assert one.reference_names == tuple(f"LABEL_{i}" for i in names)
        torch.testing.assert_close(one.output.maps[0], maps, atol=1e-5, rtol=0)
    ragged = [torch.tensor([1, 2]), ["LABEL_0"], 3, (5, 6, 0), [6]]
    found = list(explain(tiny_vit, processor, images, target=targets, against=ragged, **options))
    assert [len(one.reference_names) for one in found] == [2, 1, 1, 3, 1]
    (one, *_) = explain(tiny_vit, processor, images, target=torch.tensor(3), against=torch.tensor([5, 6]), **options)
    assert (one.target_name, one.reference_names) == ("LABEL_3", ("LABEL_5", "LABEL_6"))
    matrix = torch.eye(7).roll(1, 1)  # the next class
    found = list(explain(tiny_vit, processor, images, target=targets, against=matrix, **options))
    assert [one.reference_names for one in found] == [(f"LABEL_{i}",) for i in (1, 2, 3, 4, 5)]


def test_broken_image_in_a_column_is_named_or_skipped(
    tiny_vit: nn.Module, processor: Any, images: list[Image.Image], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images[:3], paths, strict=True):
        image.save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:200])  # cut off
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", datasets.Image())
    options: dict[str, Any] = {"batch_size": 2, "progress": False}
    with pytest.raises(ValueError, match=r"image 1 cannot be read.*on_error='skip'"):
        list(explain(tiny_vit, processor, rows, **options))
    undecoded = rows.to_iterable_dataset().cast_column("image", datasets.Image(decode=False))
    for source in (rows, undecoded):
        caplog.clear()
        found = list(explain(tiny_vit, processor, source, on_error="skip", target=[3, 4, 5], **options))
        assert [(one.index, one.target_name) for one in found] == [(0, "LABEL_3"), (2, "LABEL_5")]
        assert "Skipped image 1" in caplog.text
    with pytest.raises(ValueError, match=r"image 1 cannot be read.*an iterator that fails cannot go on"):
        list(explain(tiny_vit, processor, rows.to_iterable_dataset(), on_error="skip", **options))


def test_more_images_than_targets(tiny_vit: nn.Module, processor: Any, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="one entry for each image, got 2 and more images"):
        list(explain(tiny_vit, processor, iter(images), target=[0, 1], progress=False))


def test_autocast_and_device_leave_the_weights_alone(processor: Any, images: list[Image.Image]) -> None:
    model = build("vit")
    options: dict[str, Any] = {"target": 0, "against": [1, 2], "progress": False}
    full = list(explain(model, processor, images, **options))
    half = list(explain(model, processor, images, dtype=torch.bfloat16, device="cpu", **options))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for one, other in zip(full, half, strict=True):
        difference = float((one.output.maps - other.output.maps).abs().mean())
        assert 0 < difference < 0.05


def test_bar_shows_progress(
    tiny_vit: nn.Module, processor: Any, images: list[Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    list(explain(tiny_vit, processor, images, progress=True))
    assert "5/5" in capsys.readouterr().err
    list(explain(tiny_vit, processor, images, progress=False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size`"),
        ({"on_error": "ignore"}, "`on_error`"),
        ({"target": [1, 2]}, "one for each of the 5 images, got 2"),
        ({"against": [[1, 2]]}, "one for each of the 5 images, got 1"),
        ({"target": [[1, 2]] * 5}, "must be one class for each image"),
        ({"images": 7}, "`images` must be"),
        ({"method": "lime"}, "`method` must be one of"),
    ],
)
def test_bad_options_are_refused_at_once(
    tiny_vit: nn.Module, processor: Any, images: list[Image.Image], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        explain(tiny_vit, processor, **{"images": images, **options})
