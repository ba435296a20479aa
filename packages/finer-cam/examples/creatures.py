"""What demo and gallery share: renders whose discriminating part is known, their maps, and pictures of both."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_diorama
from finer_cam import FinerCAM, FinerCAMOutput

SIDE = 112  # pixels of a shown image


@dataclass(frozen=True)
class Creature:
    """A render, its species and its sister's, the part in which the two differ, and where that part is."""

    image: Image.Image
    species: int
    part: str
    mask: torch.Tensor

    @property
    def sister(self) -> int:
        return self.species ^ 1


def read_creature(row: dict[str, Any]) -> Creature:
    """The creature of a row of `creatures`; the mask is empty where the part is hidden."""
    (part,) = hf_diorama.discriminating_parts(row["species"], row["species"] ^ 1)
    number = 1 + [one["name"] for one in row["parts"]].index(part)
    return Creature(row["image"], row["species"], part, torch.from_numpy(np.asarray(row["part_masks"]) == number))


def load_creatures(count: int, *, one_of_each_part: bool = False) -> list[Creature]:
    """The first held-out renders with the part in view; if asked for, only the first of each part."""
    found: list[Creature] = []
    for row in hf_diorama.stream("creatures", split="heldout", n=50 * count, image_size=64):
        creature = read_creature(row)
        is_new = not one_of_each_part or creature.part not in {one.part for one in found}
        if creature.mask.any() and is_new:
            found.append(creature)
        if len(found) == count:
            return found
    raise ValueError(f"expected {count} renders with such a part in view, found {len(found)}")


def load_model(name: str) -> tuple[Any, Any]:
    """A nano model and its processor."""
    path = hf_diorama.model_path(name)
    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoImageProcessor.from_pretrained(path)


def make_maps(name: str, creatures: list[Creature], method: str, gammas: list[float]) -> FinerCAMOutput:
    """Maps `(B, G, H, W)` of the true species against its sister, by a nano model."""
    model, processor = load_model(name)
    inputs = processor([creature.image for creature in creatures], return_tensors="pt")
    with FinerCAM(model, method=method, gamma=gammas, processor=processor) as cam:
        return cam(
            **inputs,
            target=[creature.species for creature in creatures],
            references=[[creature.sister] for creature in creatures],
        )


def draw_mask(creature: Creature) -> Image.Image:
    """The image, dark but for the discriminating part."""
    light = Image.fromarray(np.where(creature.mask.numpy(), 255, 60).astype(np.uint8))
    return Image.composite(creature.image, Image.new("RGB", creature.image.size), light)


def draw_rows(creatures: list[Creature], out: FinerCAMOutput) -> list[list[Image.Image]]:
    """For each creature: the image, its map for each gamma, and the true part."""
    images = [creature.image for creature in creatures]
    overlays = [out.regamma(gamma).overlay(images, alpha=0.65) for gamma in out.gamma]
    return [
        [image, *(one[index] for one in overlays), draw_mask(creature)]
        for index, (image, creature) in enumerate(zip(images, creatures, strict=True))
    ]


def draw_gallery(rows: list[list[Image.Image]], titles: list[str], names: list[str]) -> Image.Image:
    """A sheet with a row for each kind of picture and a column for each creature."""
    left, top = 76, 18
    sheet = Image.new("RGB", (left + SIDE * len(rows), top + SIDE * len(titles)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (pictures, name) in enumerate(zip(rows, names, strict=True)):
        draw.text((left + column * SIDE + SIDE / 2, top / 2), name, fill="black", anchor="mm")
        for line, picture in enumerate(pictures):
            shown = picture.resize((SIDE - 2, SIDE - 2), Image.Resampling.BICUBIC)
            sheet.paste(shown, (left + column * SIDE + 1, top + line * SIDE + 1))
    for line, title in enumerate(titles):
        draw.multiline_text((left - 6, top + line * SIDE + SIDE / 2), title, fill="black", anchor="rm", align="right")
    return sheet
