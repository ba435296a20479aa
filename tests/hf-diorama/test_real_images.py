"""Spec section 5: real images under the column names of the worlds."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import hf_diorama as dio

CLASSES = datasets.ClassLabel(names=["airplane", "automobile", "bird", "cat"])


def write_cifar(folder: Path, image: str = "image", label: str = "label", feature: Any = CLASSES) -> None:
    folder.mkdir(exist_ok=True)
    features = datasets.Features({image: datasets.Image(), label: feature})
    for split, count in (("train", 4), ("test", 2)):
        images = [Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(count)]
        rows = {image: images, label: list(range(count))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_digits_come_with_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    train, test = dio.load("digits"), dio.load("digits", "test")
    assert len(train) + len(test) == 1_797
    assert train.features == test.features
    assert train.column_names == ["image", "label"]
    assert train.features["label"].names == [str(digit) for digit in range(10)]
    assert train[0]["image"].size == (8, 8)
    assert np.asarray(train[0]["image"]).max() == 239  # 15 of 16 levels, the darkest pixel of the first scan


def test_cifar10_from_a_folder(tmp_path: Path) -> None:
    write_cifar(tmp_path / "data", "img")
    ds = dio.load("cifar10", "test", data_dir=str(tmp_path / "data"))
    assert ds.column_names == ["image", "label"]
    assert ds.features["label"].int2str(0) == "airplane"
    assert ds[1]["image"].getpixel((0, 0)) == (40, 0, 0)
    assert len(dio.load("cifar10", data_dir=str(tmp_path / "data"))) == 4


def test_numbers_without_names_are_not_taken_for_the_classes_of_cifar10(tmp_path: Path) -> None:
    write_cifar(tmp_path / "data", feature=datasets.Value("int64"))
    with pytest.raises(ValueError, match="labels with names, found plain int64"):
        dio.load("cifar10", data_dir=str(tmp_path / "data"))


def test_folder_of_images(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(tmp_path / "photos" / label / "1.png")
    ds = dio.load("folder", data_dir=str(tmp_path / "photos"))
    assert ds.column_names == ["image", "label"]
    assert ds.features["label"].names == ["ant", "bee"]
    assert ds[0]["image"].size == (9, 7)


def test_photos_of_any_folder_are_upright_and_square(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    half = np.zeros((40, 60, 3), np.uint8)
    half[:, 30:] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned to the right: what was left is up
    Image.fromarray(half).save(tmp_path / "a.jpg", exif=turned)
    Image.new("L", (9, 7)).save(tmp_path / "test.PNG")
    Image.new("RGBA", (7, 9)).save(tmp_path / "more" / "b.webp")
    (tmp_path / "notes.txt").write_text("none")
    photos = dio.load_photos(tmp_path, n=9, image_size=32)
    assert [(photo.mode, photo.size) for photo in photos] == [("RGB", (32, 32))] * 3
    assert photos[0].getpixel((16, 2)) < (30, 30, 30)
    assert photos[0].getpixel((16, 29)) > (225, 225, 225)
    assert len(dio.load_photos(tmp_path, n=2)) == 2
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        with pytest.raises(ValueError, match=f"must be a folder with .jpg, .* files, found none in .*{folder}"):
            dio.load_photos(tmp_path / folder, n=1)
    with pytest.raises(ValueError, match="`n`"):
        dio.load_photos(tmp_path, n=0)


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    write_cifar(tmp_path / "data", label="kind")
    with pytest.raises(ValueError, match="'label' or 'labels' or 'fine_label', found image, kind"):
        dio.load("cifar10", data_dir=str(tmp_path / "data"))


def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / "flat" / name)
    with pytest.raises(ValueError, match="'label'"):
        dio.load("folder", data_dir=str(tmp_path / "flat"))


def test_bad_input_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train, test, got 'heldout'"):
        dio.load("digits", "heldout")
    with pytest.raises(ValueError, match="takes no `data_dir`"):
        dio.load("digits", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"got \['seed', 'habitat_bias'\]"):
        dio.load("digits", seed=3, habitat_bias=0.1)
    with pytest.raises(ValueError, match="existing folder"):
        dio.load("cifar10", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="Parquet files"):
        dio.load("cifar10", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="image"):
        dio.load("folder", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="needs `data_dir`"):
        dio.load("folder")
    with pytest.raises(ValueError, match="`data_dir` is for real images"):
        dio.load("creatures", n=1, data_dir=str(tmp_path))
    write_cifar(tmp_path / "data")
    with pytest.raises(ValueError, match="splits train, test, got 'validation'"):
        dio.load("cifar10", "validation", data_dir=str(tmp_path / "data"))
