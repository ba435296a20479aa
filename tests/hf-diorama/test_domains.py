"""Spec section 4: domains are pure functions of an image and a seed."""

import numpy as np
import pytest
from PIL import Image, ImageStat

import hf_diorama as dio
from hf_diorama.domains import DOMAINS
from hf_diorama.worlds.creatures.anatomy import PARTS


@pytest.mark.parametrize("domain", DOMAINS)
def test_shift_is_pure(domain: str) -> None:
    row = dio.render("creatures", 3)
    before = row["image"].copy()
    first, second = dio.shift(row["image"], domain, seed=1), dio.shift(row["image"], domain, seed=1)
    assert first == second
    assert row["image"] == before
    assert first.size == before.size
    assert first.mode == "RGB"
    assert first != before


@pytest.mark.parametrize("domain", ["photo", "sketch", "lowlight"])
def test_noise_is_that_of_the_seed(domain: str) -> None:
    image = dio.render("creatures", 3)["image"]
    assert dio.shift(image, domain, seed=1) != dio.shift(image, domain, seed=2)


@pytest.mark.parametrize("domain", [name for name in DOMAINS if name != "rotated"])
def test_annotations_stay_where_pixels_do_not_move(domain: str) -> None:
    row = dio.render("creatures", 5)
    shifted = dio.shift(row, domain)
    assert {name for name in row if shifted[name] != row[name]} == {"image"}


@pytest.mark.parametrize("topic", ["objects", "attribute", "quality", "color"])
def test_shifted_scene_claims_no_color_and_no_quality(topic: str) -> None:
    ds = dio.load("scenes", n=4, image_size=32, topic=topic)
    assert any(item["color_name"] for row in ds for item in row["objects"]) or topic == "quality"
    shifted = ds.map(lambda row: dio.shift(row, "infrared"))
    assert shifted.features == ds.features
    for before, after in zip(ds, shifted, strict=True):
        for item, original in zip(after["objects"], before["objects"], strict=True):
            assert [item[name] for name in ("color_srgb", "color_lab", "color_name")] == [None] * 3
            assert (item["category"], item["bbox"]) == (original["category"], original["bbox"])
        assert after["quality"] == []
        assert not {level["name"] for level in after["levels"]} & {"lightness", "severity"}
        assert (after["states"], after["scene_type"]) == (before["states"], before["scene_type"])


def test_rotated_turns_masks_and_measures_parts_anew() -> None:
    row = dio.render("creatures", 5, image_size=96)
    shifted = dio.shift(row, "rotated")
    labels = np.asarray(shifted["part_masks"])
    for number, part in enumerate(shifted["parts"], start=1):
        ys, xs = np.nonzero(labels == number)
        assert part["bbox"] == ([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [])
    assert shifted["pose"]["rotation"] == row["pose"]["rotation"] - 18
    # The wing patch keeps its colour up to contrast: mask and picture turned together.
    patch = PARTS.index("wing_patch") + 1
    turned = np.asarray(row["image"].rotate(18))[labels == patch].mean(0)
    mean = np.asarray(row["image"]).mean((0, 1))
    found = np.asarray(shifted["image"])[labels == patch].mean(0)
    np.testing.assert_allclose(found, mean + 0.55 * (turned - mean), atol=6)


def test_rotated_refuses_rows_with_boxes_that_it_cannot_turn() -> None:
    row = dio.render("scenes", 0, image_size=64)
    with pytest.raises(ValueError, match=r"shift row\['image'\] alone"):
        dio.shift(row, "rotated")
    assert dio.shift(row["image"], "rotated").size == (64, 64)


def test_domains_are_what_they_are_called() -> None:
    image = dio.render("creatures", 3, image_size=96)["image"]
    pixels = {domain: np.asarray(dio.shift(image, domain)).astype(int) for domain in DOMAINS}
    assert pixels["lowlight"].mean() < 0.4 * np.asarray(image).mean()
    assert len(np.unique(pixels["poster"])) <= 4
    assert (pixels["sketch"][:, :, 0] - pixels["sketch"][:, :, 2]).mean() > 0  # warm paper
    assert np.abs(np.diff(pixels["sketch"], axis=2)).mean() < 20  # without the colours of the scene
    assert pixels["photo"][:8, :8].mean() < 0.8 * np.asarray(image)[:8, :8].mean()  # dark corners
    np.testing.assert_array_equal(pixels["infrared"][:, :, 0], np.asarray(image)[:, :, 1])
    stds = [sum(ImageStat.Stat(picture).stddev) for picture in (dio.shift(image, "rotated"), image)]
    assert stds[0] < 0.7 * stds[1]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [(1, 1), (33, 20), (64, 100)])
def test_any_size_shifts(domain: str, size: tuple[int, int]) -> None:
    assert dio.shift(Image.new("L", size, 90), domain).size == size


def test_shift_maps_over_a_dataset() -> None:
    ds = dio.load("creatures", n=2, image_size=32)
    shifted = ds.map(lambda row, index: dio.shift(row, "photo", seed=index), with_indices=True)
    assert shifted.features == ds.features
    assert shifted[1]["image"].tobytes() == dio.shift(ds[1]["image"], "photo", seed=1).tobytes()


def test_bad_input_is_one_clear_error() -> None:
    row = dio.render("creatures", 3)
    with pytest.raises(ValueError, match="photo, sketch, poster, infrared, lowlight, rotated"):
        dio.shift(row, "painting")
    with pytest.raises(TypeError, match="PIL image or a row"):
        dio.shift({"pixels": 1}, "photo")  # type: ignore[type-var]
