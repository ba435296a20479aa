"""Pools of edited photos: every edit is known, so that pairs of real images have exact answers."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from hf_compbench.groups import hash_unit

Row = dict[str, Any]
VIEWS = 6
"""Edited views of a photo."""
_COLORS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 40),
    "black": (15, 15, 15),
}
_SHAPES = ("circle", "square", "triangle")
_STRENGTHS = (0.55, 0.7, 0.85, 1.0, 1.2, 1.45)
_DEFECTS = ("blur", "noise", "compression", "exposure")


def load_photos(folder: str | Path) -> datasets.Dataset:
    """Returns the photos of a folder as a dataset with the column `image`.

    They come from its Parquet files (only those with `test` in their names, if there are such), or else from images in
    any depth.

    Raises:
        FileNotFoundError: if there is no such folder, or neither Parquet files nor images in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"Expected a folder of photos, got {str(folder)!r}.")
    parquet = sorted(root.glob("*test*.parquet")) or sorted(root.glob("*.parquet"))
    if parquet:
        photos = datasets.Dataset.from_parquet([str(path) for path in parquet])
        images = [name for name, feature in photos.features.items() if isinstance(feature, datasets.Image)]
        if not images:
            raise ValueError(f"Expected a column of images in {parquet[0]}, got {', '.join(photos.column_names)}.")
        return photos.select_columns([images[0]]).rename_column(images[0], "image") if images[0] != "image" else photos
    suffixes = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
    paths = sorted(str(path) for path in root.rglob("*") if path.suffix.casefold() in suffixes)
    if not paths:
        raise FileNotFoundError(f"Expected Parquet files or images in {str(folder)!r}, found none.")
    return datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))


def _rng(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int(hash_unit(*parts) * 2**53))


def _crop(photo: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random window of nine tenths of the photo, so that equal edits are not equal pixels."""
    square = ImageOps.fit(photo.convert("RGB"), (size * 10 // 9, size * 10 // 9), Image.Resampling.BICUBIC)
    x, y = (int(rng.integers(0, square.width - size + 1)) for _ in range(2))
    return square.crop((x, y, x + size, y + size))


def _degrade(image: Image.Image, defect: str, severity: int, rng: np.random.Generator) -> Image.Image:
    if severity == 0:
        return image
    if defect == "blur":
        return image.filter(ImageFilter.GaussianBlur((1.0, 2.0, 4.0)[severity - 1] * image.width / 128))
    if defect == "noise":
        noise = rng.normal(0, (10, 25, 55)[severity - 1], (image.height, image.width, 3))
        return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if defect == "compression":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=(25, 10, 3)[severity - 1])
        return Image.open(buffer).convert("RGB")
    return ImageEnhance.Brightness(image).enhance((0.6, 0.35, 0.15)[severity - 1])


def _quality(photo: Image.Image, name: str, size: int) -> Iterator[Row]:
    """Views of one photo with one defect: severities 0, 0, 1, 2, 3, 3 in a random order."""
    rng = _rng(name, "quality")
    defect = _DEFECTS[int(rng.integers(len(_DEFECTS)))]
    for severity in rng.permutation([0, 0, 1, 2, 3, 3]).tolist():
        image = _degrade(_crop(photo, size, rng), defect, severity, rng)
        yield {"image": image, "states": [defect], "levels": [{"name": "severity", "value": float(severity)}]}


def _attribute(photo: Image.Image, name: str, size: int) -> Iterator[Row]:
    """Views of one photo with its brightness or its saturation scaled."""
    rng = _rng(name, "attribute")
    enhance, word = ((ImageEnhance.Brightness, "brighter"), (ImageEnhance.Color, "more saturated"))[
        int(rng.integers(2))
    ]
    for strength in rng.permutation(_STRENGTHS).tolist():
        image = enhance(_crop(photo, size, rng)).enhance(strength)
        yield {"image": image, "states": [word], "levels": [{"name": "strength", "value": strength}]}


def _existence(photo: Image.Image, name: str, size: int) -> Iterator[Row]:
    """Views of one photo with three or four stickers, one of them missing in some of the views."""
    rng = _rng(name, "existence")
    kinds = [(color, shape) for color in _COLORS for shape in _SHAPES]
    chosen = [kinds[i] for i in rng.permutation(len(kinds))[: 3 + int(rng.integers(2))]]
    cells = rng.permutation(9)[: len(chosen)].tolist()
    base = ImageOps.fit(photo.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    missing = [None, None, *rng.permutation(len(chosen))[:3].tolist(), None]
    for view in rng.permutation(VIEWS).tolist():
        image = ImageEnhance.Brightness(base).enhance(float(rng.uniform(0.94, 1.06)))
        shown = [i for i in range(len(chosen)) if i != missing[view]]
        for i in shown:
            _stick(image, chosen[i], cells[i])
        objects = [{"color_name": chosen[i][0], "category": chosen[i][1]} for i in shown]
        yield {"image": image, "objects": objects}


def _stick(image: Image.Image, kind: tuple[str, str], cell: int) -> None:
    """Draws a sticker with a white rim into a cell of a grid of three by three."""
    x, y = ((cell % 3 + 0.5) * image.width / 3, (cell // 3 + 0.5) * image.width / 3)
    draw = ImageDraw.Draw(image)
    for radius, color in ((image.width / 8, (250, 250, 250)), (image.width / 10, _COLORS[kind[0]])):
        if kind[1] == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        elif kind[1] == "square":
            side = radius * 0.85
            draw.rectangle((x - side, y - side, x + side, y + side), fill=color)
        else:
            draw.regular_polygon((x, y, radius), 3, fill=color)


def _quantity(photo: Image.Image, name: str, size: int) -> Iterator[Row]:
    """One sheet of 2 to 9 prints of the photo that cover the same area together."""
    rng = _rng(name, "quantity")
    count = int(rng.integers(2, 10))
    sheet = Image.new("RGB", (size, size), tuple(int(value) for value in rng.integers(150, 240, 3)))
    # Nine prints have to fit a cell of the grid each, so two are at most as large as a cell, too: the area is shared.
    side = max(4, int(size / 3 * 0.92 * np.sqrt(2 / count) * rng.uniform(0.9, 1.0)))
    for cell in rng.permutation(9)[:count].tolist():
        free = size // 3 - side
        x, y = (int(rng.integers(0, max(free, 1))) for _ in range(2))
        sheet.paste(
            ImageOps.fit(photo.convert("RGB"), (side, side)), (cell % 3 * size // 3 + x, cell // 3 * size // 3 + y)
        )
    yield {"image": sheet, "objects": [{"color_name": "", "category": "print"}] * count}


_EDITS: dict[str, Callable[[Image.Image, str, int], Iterator[Row]]] = {
    "quality": _quality,
    "attribute": _attribute,
    "existence": _existence,
    "quantity": _quantity,
}


def edit_photos(photos: Sequence[Any], kind: str, *, image_size: int = 128, seed: int = 0) -> datasets.Dataset:
    """Returns a pool of edited photos with the annotations that the mining rules read.

    Args:
        photos: rows with an `image`.
        kind: `"quality"`, `"attribute"`, `"existence"` or `"quantity"`.
        image_size: height and width in pixels.
        seed: seed of the edits. Bytes may differ between versions of Pillow and numpy.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_compbench.photos import edit_photos
    >>> pool = edit_photos([{"image": Image.new("RGB", (50, 40), "teal")}], "quality", image_size=64)
    >>> pool.num_rows, pool[0]["image"].size
    (6, (64, 64))

    ```
    """
    if kind not in _EDITS:
        raise ValueError(f"Expected `kind` to be one of {', '.join(_EDITS)}, got {kind!r}.")
    rows = []
    for number, photo in enumerate(photos):
        group = f"photo-{seed}-{kind}-{number}"
        for row in _EDITS[kind](photo["image"], group, image_size):
            empty: Row = {"objects": [], "levels": [], "states": []}
            rows.append({**empty, **row, "group_id": group})
    string = datasets.Value("string")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.List({"color_name": string, "category": string}),
            "levels": datasets.List({"name": string, "value": datasets.Value("float32")}),
            "states": datasets.List(string),
            "group_id": string,
        }
    )
    return datasets.Dataset.from_list(rows, features=features)
