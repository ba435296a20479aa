"""Real images under the column names of the worlds, `image` and `label`, and photos of any folder."""

import importlib.util
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageOps

from hf_diorama.arguments import check_integer, check_size

LOADERS = ("digits", "cifar10", "folder")
"""Names of the real-image sets."""

CIFAR10_ID = "uoft-cs/cifar10"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def load_real(name: str, split: str, data_dir: str | None) -> datasets.Dataset:
    """Returns real images with the columns `image` and `label` (`ClassLabel`).

    Args:
        name (`str`): one of `LOADERS`.
        split (`str`): a split that the images come with.
        data_dir (`str`, *optional*): Parquet files (`cifar10`) or one folder of images a class (`folder`).

    Returns:
        `datasets.Dataset`

    Raises:
        ImportError: if `digits` is asked for without the extra `real`.
        ValueError: if the folder, the split or a column is missing, or if labels are numbers without names.
    """
    if name == "digits":
        if data_dir is not None:
            raise ValueError("'digits' comes with scikit-learn and takes no `data_dir`.")
        return _load_digits(split)
    if name == "cifar10" and data_dir is None:
        loaded = datasets.load_dataset(CIFAR10_ID)
    else:
        if data_dir is None:
            raise ValueError(f"{name!r} needs `data_dir`, a folder that holds one folder of images for each class.")
        folder = Path(data_dir)
        if not folder.is_dir():
            raise ValueError(f"`data_dir` must be an existing folder, got {data_dir!r}.")
        if name == "cifar10":
            if not any(folder.rglob("*.parquet")):
                raise ValueError(f"`data_dir` must hold Parquet files for 'cifar10', found none in {data_dir!r}.")
            loaded = datasets.load_dataset("parquet", data_dir=str(folder))
        else:
            try:
                loaded = datasets.load_dataset("imagefolder", data_dir=str(folder))
            except datasets.data_files.EmptyDatasetError:
                raise ValueError(f"`data_dir` must hold images for 'folder', found none in {data_dir!r}.") from None
    return _unify(_pick(loaded, split, name), name)


def load_photos(data_dir: str | Path, n: int, image_size: int = 224) -> list[Image.Image]:
    """Returns the first photos of a folder and of the folders in it, by name: upright, square and of one size.

    Args:
        data_dir (`str` or `Path`): the folder.
        n (`int`): number of photos, or all if there are fewer.
        image_size (`int`, defaults to 224): height and width in pixels; what does not fit the square is cut off.

    Raises:
        ValueError: if there is no such folder, or no photo in it.
        OSError: if a photo cannot be read.

    Example:

    ```python
    >>> from pathlib import Path
    >>> import hf_diorama as dio
    >>> Path("photos").mkdir(exist_ok=True)
    >>> dio.render("creatures", index=0)["image"].save("photos/one.png")
    >>> [photo.size for photo in dio.load_photos("photos", n=3)]
    [(224, 224)]

    ```
    """
    check_integer("n", n, 1)
    check_size(image_size)
    paths = sorted(path for path in Path(data_dir).rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise ValueError(
            f"`data_dir` must be a folder with {', '.join(PHOTO_SUFFIXES)} files, found none in {str(data_dir)!r}."
        )
    photos = []
    for path in paths[:n]:
        with Image.open(path) as photo:
            upright = ImageOps.exif_transpose(photo).convert("RGB")
        photos.append(ImageOps.fit(upright, (image_size, image_size)))
    return photos


def _load_digits(split: str) -> datasets.Dataset:
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("'digits' needs scikit-learn: pip install \"hf-diorama[real]\".")
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise ValueError(f"'digits' has the splits train, test, got {split!r}.")
    bunch = load_digits()
    # The scans are sorted by writer: the last fifth holds hands that the first four fifths do not.
    border = len(bunch.target) * 4 // 5
    chosen = slice(0, border) if split == "train" else slice(border, None)
    pixels = (bunch.images[chosen].astype(np.int32) * 255 // 16).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": bunch.target[chosen].tolist()}
    return datasets.Dataset.from_dict(rows, features=features, split=datasets.NamedSplit(split))


def _pick(loaded: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    if split not in loaded:
        raise ValueError(f"{name!r} has the splits {', '.join(loaded)}, got {split!r}.")
    return loaded[split]


def _unify(dataset: datasets.Dataset, name: str) -> datasets.Dataset:
    """Returns the columns `image` and `label`, whatever of the usual names they had."""
    columns = {}
    for wanted, names in {"image": ("image", "img"), "label": ("label", "labels", "fine_label")}.items():
        found = next((column for column in names if column in dataset.column_names), None)
        if found is None:
            raise ValueError(
                f"{name!r} needs a column {' or '.join(map(repr, names))}, found {', '.join(dataset.column_names)}."
            )
        columns[found] = wanted
    dataset = dataset.select_columns(list(columns)).rename_columns({a: b for a, b in columns.items() if a != b})
    if not isinstance(dataset.features["image"], datasets.Image):
        dataset = dataset.cast_column("image", datasets.Image())
    label = dataset.features["label"]
    if isinstance(label, datasets.ClassLabel):
        return dataset
    if name == "cifar10" and "string" not in str(label.dtype):
        raise ValueError(
            f"{name!r} needs labels with names, found plain {label.dtype}: which number is which class is not told. "
            "Write the files anew after dataset.cast_column('label', datasets.ClassLabel(names=[...]))."
        )
    return dataset.class_encode_column("label")
