"""Items of four abilities built from photos, whose answers are known by construction. Used by `ava_photos`.

Colours are those of a smooth region of the photo, boxes those of a photo pasted into another, counts those of pasted
copies, texts are rendered. The released JSON files are written, so that `load_ability(..., "path:DIR")` reads them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_ava_bench import find_ability

SIZE = 64
RED = (255, 0, 0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Photo = tuple[Image.Image, str]
Item = tuple[Image.Image, str, str]


def _background(photo: Photo) -> Image.Image:
    return photo[0].convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _red_box(image: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Draws a box two pixels wide around a region, one pixel away from it."""
    x0, y0, x1, y1 = box
    ImageDraw.Draw(image).rectangle((x0 - 3, y0 - 3, x1 + 2, y1 + 2), outline=RED, width=2)


def build_color(photos: list[Photo], rng: np.random.Generator) -> Item:
    """The smoothest of 40 regions of a photo, and its mean colour."""
    image = _background(photos[0])
    pixels = np.asarray(image, dtype=float)
    corners, sides = rng.integers(3, SIZE - 19, (40, 2)), rng.integers(10, 16, 40)
    places = [(int(x), int(y), int(side)) for (x, y), side in zip(corners, sides, strict=True)]
    x, y, side = min(places, key=lambda p: pixels[p[1] : p[1] + p[2], p[0] : p[0] + p[2]].std(axis=(0, 1)).sum())
    color = pixels[y : y + side, x : x + side].mean(axis=(0, 1)).round().astype(int).tolist()
    _red_box(image, (x, y, x + side, y + side))
    return image, "What is the color in the red box, as [r, g, b]?", str(color)


def build_localization(photos: list[Photo], rng: np.random.Generator) -> Item:
    """A photo pasted into one of another class, and its box."""
    image, (pasted, name) = _background(photos[0]), photos[1]
    width, height = (int(side) for side in rng.integers(14, 40, 2))
    x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
    image.paste(pasted.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, y))
    box = ", ".join(f"{side / SIZE:.2f}" for side in (x, y, x + width, y + height))
    return image, f"Where is the {name}, as [x1, y1, x2, y2]?", f"[{box}]"


def build_counting(photos: list[Photo], rng: np.random.Generator) -> Item:
    """One to nine copies of a small photo, pasted into one of another class where they do not touch."""
    image, (pasted, name) = _background(photos[0]), photos[1]
    count, cell = int(rng.integers(1, 10)), SIZE // 4
    for place in rng.permutation(16)[:count]:
        side = int(rng.integers(10, 14))
        x, y = (int(axis * cell + rng.integers(0, cell - side)) for axis in (place % 4, place // 4))
        image.paste(pasted.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, y))
    return image, f"How many {name}s are there?", str(count)


def build_ocr(photos: list[Photo], rng: np.random.Generator) -> Item:
    """Two to five letters on a light plate in a photo, with a red box around them."""
    image = _background(photos[0])
    text = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 6))))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    left, top, right, bottom = (int(side) for side in draw.textbbox((0, 0), text, font=font))
    width, height = right - left + 2, bottom - top + 2
    x, y = int(rng.integers(4, max(5, SIZE - width - 4))), int(rng.integers(4, SIZE - height - 4))
    light = tuple(int(channel) for channel in rng.integers(190, 256, 3))
    draw.rectangle((x, y, x + width, y + height), fill=light)
    draw.text((x + 1 - left, y + 1 - top), text, fill=(20, 20, 20), font=font)
    _red_box(image, (x, y, x + width, y + height))
    return image, "What is written in the red box?", text


BUILDERS: Mapping[str, Callable[[list[Photo], np.random.Generator], Item]] = {
    "color": build_color,
    "counting": build_counting,
    "localization": build_localization,
    "ocr": build_ocr,
}


def build_items(photos: Any, ability: str, split: str, n: int) -> list[Item]:
    """Returns `n` items; each takes a photo and one of another class, both of them of its split."""
    names, seed = photos.features["label"].names, [sorted(BUILDERS).index(ability), ("train", "test").index(split)]
    rng = np.random.default_rng(seed)
    labels = np.asarray(photos["label"])
    items = []
    for _ in range(n):
        first = int(rng.integers(len(photos)))
        second = int(rng.choice(np.flatnonzero(labels != labels[first])))
        pair = [(photos[row]["image"], names[labels[row]]) for row in (first, second)]
        items.append(BUILDERS[ability](pair, rng))
    return items


def write_items(folder: Path, photos: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Writes both splits of all four abilities, and returns the `source` that reads them; the files are not kept."""
    for ability in BUILDERS:
        root = folder / find_ability(ability).hub_name
        (root / "images").mkdir(parents=True, exist_ok=True)
        for split, n in sizes.items():
            entries = []
            for index, (image, question, answer) in enumerate(build_items(photos[split], ability, split, n)):
                key = f"{ability}-{split}-{index:05d}"
                image.save(root / "images" / f"{key}.png")
                entries.append((key, f"images/{key}.png", question, answer))
            _write_json(root, split, entries)
    return f"path:{folder}"


def _write_json(root: Path, split: str, entries: list[tuple[str, str, str, str]]) -> None:
    if split == "train":
        rows = [
            {"id": key, "image": image, "conversations": [
                {"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]}
            for key, image, question, answer in entries
        ]  # fmt: skip
        (root / "train.json").write_text(json.dumps(rows), encoding="utf-8")
        return
    questions = [{"question_id": key, "image": image, "text": question} for key, image, question, _ in entries]
    truth = [{"question_id": key, "answer": answer} for key, *_, answer in entries]
    (root / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (root / "ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")
