"""From the key of a row to a creature: who it is, where it stands, what it looks like."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_diorama.draws import Draws
from hf_diorama.worlds.base import RowKey
from hf_diorama.worlds.creatures.anatomy import PARTS, Individual, paint_creature
from hf_diorama.worlds.creatures.canvas import Canvas, Frame
from hf_diorama.worlds.creatures.habitats import paint_habitat, paint_leaves
from hf_diorama.worlds.creatures.taxonomy import (
    BEAK_LENGTHS,
    BRANCHING,
    HABITATS,
    NICHES,
    RANKS,
    TRAITS,
    Species,
    build_tree,
)
from hf_diorama.worlds.masks import extent

OCCLUSION = 0.1
"""Share of the images with leaves in front of the creature."""


def creature_features(
    *, branching: Sequence[int] = BRANCHING, habitat_bias: float = 0.3, long_tail: float = 0.0
) -> datasets.Features:
    """Returns the columns of a row, which depend on the names in the tree.

    Args:
        branching (`Sequence[int]`): as in [`build_tree`].
        habitat_bias (`float`): share of the images whose habitat follows the niche, in [0, 1]; others show any.
        long_tail (`float`): exponent of the species frequencies, from 0 (uniform); 1 gives Zipf's law.

    Returns:
        `datasets.Features`

    Raises:
        ValueError: if an option is out of its range.
    """
    for name, value, top in (("habitat_bias", habitat_bias, 1), ("long_tail", long_tail, 5)):
        if not isinstance(value, (int, float)) or not 0 <= value <= top:
            raise ValueError(f"`{name}` must be a number in [0, {top}], got {value!r}.")
    if not isinstance(branching, (list, tuple)):
        raise ValueError(f"`branching` must be a list or tuple of five whole numbers, got {branching!r}.")
    tree = build_tree(tuple(branching))
    text, real = datasets.Value("string"), datasets.Value("float32")
    names = datasets.ClassLabel(names=[species.name for species in tree])
    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": names,
            "species": names,
            **dict.fromkeys(RANKS, text),
            "common_name": text,
            "captions": dict.fromkeys(tree[0].captions(), text),
            "sex": datasets.ClassLabel(names=["female", "male"]),
            "life_stage": datasets.ClassLabel(names=["juvenile", "adult"]),
            "pose": {"facing": text, "rotation": real, "scale": real},
            "niche": datasets.ClassLabel(names=list(NICHES)),
            "habitat": datasets.ClassLabel(names=list(HABITATS.values())),
            "beak_length": real,
            "body_size": real,
            "occluded": datasets.Value("bool"),
            "parts": datasets.List(
                {
                    "name": text,
                    "visible": datasets.Value("bool"),
                    "bbox": datasets.List(datasets.Value("int32")),
                    "area": datasets.Value("int32"),
                }
            ),
            "part_masks": datasets.Image(),
            "background": datasets.Value("int64"),
        }
    )


def render_creature(
    key: RowKey,
    image_size: int,
    *,
    branching: Sequence[int] = BRANCHING,
    habitat_bias: float = 0.3,
    long_tail: float = 0.0,
    graft: tuple[str, int] | None = None,
) -> dict[str, Any]:
    """Returns one row.

    Args:
        key (`RowKey`): which row.
        image_size (`int`): height and width in pixels.
        branching, habitat_bias, long_tail: as in [`creature_features`].
        graft (`tuple[str, int]`, *optional*): a trait part, and the species whose look it takes.

    Returns:
        `dict[str, Any]`: a value for each feature; class labels as integers.
    """
    tree = build_tree(tuple(branching))
    draws = key.draws("species")
    number = _sample_species(len(tree), long_tail, draws)
    species = tree[number]
    draws = key.draws("individual")
    female, juvenile, occluded = draws.chance(0.5), draws.chance(0.25), draws.chance(OCCLUSION)
    size_factor = species.body_size * draws.uniform(0.96, 1.0) * (0.88 if juvenile else 1.0)
    beak_factor = draws.uniform(0.92, 1.08)
    looks = species if graft is None else _graft(species, graft[0], tree[graft[1]])
    individual = Individual(female=female, juvenile=juvenile, beak_length=BEAK_LENGTHS[looks.niche] * beak_factor)
    draws = key.draws("habitat")
    habitat = HABITATS[species.niche] if draws.chance(habitat_bias) else draws.choice(list(HABITATS.values()))
    draws = key.draws("pose")
    flip, angle, scale = draws.chance(0.5), draws.uniform(-25, 25), draws.uniform(0.92, 1.0)
    shift = draws.uniform(-0.03, 0.03), draws.uniform(-0.03, 0.03)

    canvas = Canvas(image_size)
    background = key.draws("background").integer(0, 2**31)
    paint_habitat(canvas, habitat, Draws("habitat", background))
    unit = canvas.width * 0.5 * size_factor * scale
    frame = Frame(canvas.width * (0.5 + shift[0]), canvas.width * (0.5 + shift[1]), unit, angle, flip)
    paint_creature(canvas, frame, looks, individual)
    if occluded:
        paint_leaves(canvas, key.draws("leaves"))
    picture, labels = canvas.finish()
    picture = _light(picture, key.draws("light"))
    return {
        "image": Image.fromarray(picture),
        "label": number,
        "species": number,
        **dict(zip(RANKS, species.ranks, strict=True)),
        "common_name": species.common_name,
        "captions": species.captions(),
        "sex": int(not female),
        "life_stage": int(not juvenile),
        "pose": {"facing": "left" if flip else "right", "rotation": angle, "scale": scale},
        "niche": NICHES.index(species.niche),
        "habitat": list(HABITATS.values()).index(habitat),
        "beak_length": individual.beak_length,
        "body_size": size_factor,
        "occluded": occluded,
        "parts": measure_parts(labels),
        "part_masks": Image.fromarray(labels),
        "background": background,
    }


def measure_parts(labels: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Returns name, visibility, half-open bounding box `[x0, y0, x1, y1]` and area of each part of a label map."""
    parts = []
    areas = np.bincount(labels.ravel(), minlength=len(PARTS) + 1).tolist()
    for label, name in enumerate(PARTS, start=1):
        bbox = extent(labels == label) if areas[label] else []
        parts.append({"name": name, "visible": areas[label] > 0, "bbox": bbox, "area": areas[label]})
    return parts


def _sample_species(count: int, long_tail: float, draws: Draws) -> int:
    if not long_tail:
        return draws.integer(0, count)
    ends = _tail(count, long_tail)
    aim = draws.unit() * ends[-1]
    order = _tail_order(count)
    return order[next(place for place, end in enumerate(ends) if aim < end)]


@lru_cache
def _tail(count: int, long_tail: float) -> tuple[float, ...]:
    total, ends = 0.0, []
    for place in range(1, count + 1):
        total += place**-long_tail
        ends.append(total)
    return tuple(ends)


@lru_cache
def _tail_order(count: int) -> tuple[int, ...]:
    return tuple(Draws("creatures", "tail").sample(range(count), count))


def _graft(species: Species, part: str, donor: Species) -> Species:
    """Returns the species with one part of another; a beak brings its length, that is the niche."""
    traits = tuple(b if trait == part else a for trait, a, b in zip(TRAITS, species.traits, donor.traits, strict=True))
    return replace(species, traits=traits, niche=donor.niche if part == "beak" else species.niche)


def _light(picture: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
    """Returns the picture under a coloured light from one side, with a little sensor noise; integers throughout."""
    size = len(picture)
    gain, slope, warmth = draws.uniform(0.84, 1.08), draws.uniform(-0.12, 0.12), draws.uniform(-0.06, 0.06)
    tints = [round(256 * gain * (1 + warmth * k)) for k in (1, 0, -1)]
    ramp = np.array([round(256 * (1 + slope * (2 * x / (size - 1) - 1))) for x in range(size)], dtype=np.int32)
    lit = picture * np.array(tints, dtype=np.int32)  # (H, W, 3)
    lit *= ramp[:, None]
    lit >>= 16
    lit += (draws.bytes(size, size, 1) >> 6).astype(np.int32) - 2
    return np.clip(lit, 0, 255).astype(np.uint8)
