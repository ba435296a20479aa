"""Creatures and objects: does replay of general images keep a CLIP's general knowledge while it learns species?

A CLIP of 64 pixels first learns to name the colour and shape of single objects from 8,000 pictures, `a picture of a
red star.` It goes on with creatures (16,000 images, hierarchical captions), with and without replaying the objects
through the second projection of BioCLIP 2. Held-out objects are named by 88 texts, one for each colour and shape,
creatures by the texts of 96 species. Seeds, intervals and claims are those of `taxaclip_creatures`.
"""

import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel
from transformers.utils.logging import tqdm

import hf_diorama as dio
from cases.taxaclip_creatures import (
    PIXELS,
    SEEDS,
    Row,
    average,
    build_model,
    build_processor,
    compare,
    embed,
    find_files,
    find_folder,
    keep,
    load_test,
    name_ranks,
    train,
    write_creatures,
)
from taxaclip import ReplayCLIPModel
from taxaclip.streams import ImageTextStream
from taxaclip.texts import embed_names

STEPS, REPLAY_BATCH = 200, 32
NUM_OBJECTS, NUM_CREATURES = 8_000, 16_000
NUM_TEST_OBJECTS, NUM_TEST = 1_000, 1_920


def describe(row: Row) -> str:
    """Colour and shape of the one object of a picture."""
    (thing,) = row["objects"]
    return f"{thing['color_name']} {thing['category']}"


def write_objects(folder: Path, count: int) -> None:
    rows = dio.load("scenes", split="train", n=count, image_size=PIXELS, num_objects=1)
    rows = rows.select_columns(["image", "objects"])
    rows = rows.map(lambda row: {"text": f"a picture of a {describe(row)}."}, remove_columns="objects")
    rows.to_parquet(folder / "objects.parquet")


def write_files(folder: Path, num_objects: int, num_creatures: int) -> Row:
    write_objects(folder, num_objects)
    return write_creatures(folder, (num_creatures,))


@lru_cache(maxsize=1)
def load_objects(count: int) -> tuple[torch.Tensor, list[str]]:
    rows = dio.load("scenes", split="heldout", n=count, seed=3_000, image_size=PIXELS, num_objects=1)
    pixels = build_processor().image_processor(rows["image"][:], return_tensors="pt")["pixel_values"]
    return pixels, [describe(row) for row in rows.select_columns(["objects"])]


@torch.no_grad()
def name_objects(model: CLIPModel, projection: torch.nn.Module, count: int) -> float:
    """The share of held-out objects whose colour and shape are both named rightly."""
    pixels, truth = load_objects(count)
    names = sorted(set(truth))
    texts = embed_names(model, build_processor(), names, templates=("a picture of a {}.",))
    embeds = torch.cat([projection(model.vision_model(part).pooler_output) for part in pixels.split(200)])
    found = (torch.nn.functional.normalize(embeds, dim=1) @ texts.T).argmax(dim=1).tolist()
    return float(np.mean([names[number] == name for number, name in zip(found, truth, strict=True)]))


def train_twice(folder: Path, seed: int, *, steps: int, num_objects: int, num_test: int) -> Row:
    """Objects and creatures named rightly, right before the creatures and after them."""
    test = load_test(num_test)
    objects = ImageTextStream([folder / "objects.parquet"], text="captions", seed=seed)
    before = build_model(seed)
    train(before, objects, steps, seed)
    found: Row = {"objects": {"before creatures": name_objects(before, before.visual_projection, num_objects)}}
    for way, model_class in (("without replay", CLIPModel), ("with replay", ReplayCLIPModel)):
        with tempfile.TemporaryDirectory() as saved:
            before.save_pretrained(saved)
            model = model_class.from_pretrained(saved, attn_implementation="eager")
        has_replay = model_class is ReplayCLIPModel
        options: Row = {"replay_stream": objects, "replay_batch_size": REPLAY_BATCH} if has_replay else {}
        creatures = ImageTextStream(find_files(folder, NUM_CREATURES), seed=seed)
        train(model, creatures, steps, seed, targets="multi", learning_rate=5e-4, **options)
        found["objects"][way] = name_objects(model, model.visual_projection, num_objects)
        if has_replay:
            projected = name_objects(model, model.replay_projection, num_objects)
            found["objects"]["with replay, second projection"] = projected
        for rank, share in name_ranks(model, embed(model, test["pixels"]), test, "hierarchical").items():
            found.setdefault(rank, {})[way] = share
    return found


def run(*, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    num_objects, num_creatures, num_test = (200, 200, 400) if quick else (NUM_TEST_OBJECTS, NUM_CREATURES, NUM_TEST)
    folder = find_folder("taxaclip-replay", STEPS, REPLAY_BATCH, num_objects, num_creatures)
    keep(folder, "files", lambda: write_files(folder, 200 if quick else NUM_OBJECTS, num_creatures))
    options: Row = {"steps": 2 if quick else STEPS, "num_objects": num_objects, "num_test": num_test}
    found = [
        keep(folder, f"{seed}", partial(train_twice, folder, seed, **options))
        for seed in tqdm(SEEDS[:2] if quick else SEEDS, desc="seeds")
    ]
    rows = [
        average([one[task][way] for one in found], task=task, way=way)
        for task in ("objects", "species", "genus", "family")
        for way in found[0][task]
    ]

    def get(task: str, way: str) -> list[float]:
        return [one[task][way] for one in found]

    second = get("objects", "with replay, second projection")
    without = get("objects", "without replay")
    rows.append(compare("creatures cost objects without replay", get("objects", "before creatures"), without))
    rows.append(compare("replay keeps objects, second projection", second, without))
    rows.append(compare("replay keeps objects, first projection", get("objects", "with replay"), without))
    for rank in ("species", "genus"):
        better = get(rank, "with replay"), get(rank, "without replay")
        rows.append(compare(f"replay: more {rank} right", *better))
    return rows


PLOT: dict[str, Any] | None = None
