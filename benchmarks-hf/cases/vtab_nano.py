"""The study's table in small: six methods on digits, creatures and photos, tuned on 80 and 20 images, one seed.

The backbone is hf-diorama's vfm-nano-contrastive. One seed and 200 test images: an accuracy has an interval of up to 7
points to either side, so that the order of methods means little; the case shows that the driver `vtab.py` does the
whole table. Photos are read as in `peft_ensemble_photos`.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

import hf_diorama
import vtab
from cases.peft_ensemble_photos import load_photos

METHODS = ("linear", "bitfit", "ssf", "lora", "adaptformer", "vpt-deep")


def take(rows: Dataset, labels: list[int], count: int, seed: int = 0) -> Dataset:
    """Images of a seeded choice of rows, with their labels."""
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    images = [image.convert("RGB") for image in rows.select(places)["image"]]
    ids = [f"{place}" for place in places]
    return Dataset.from_dict({"image": images, "label": [labels[place] for place in places], "id": ids})


def build_tasks(num_train: int, num_test: int) -> list[vtab.Task]:
    digits = [hf_diorama.load("digits", split=split) for split in ("train", "test")]
    creatures = [
        hf_diorama.load("creatures", split=split, n=300, seed=31, image_size=64) for split in ("test", "heldout")
    ]
    photos = [load_photos(split) for split in ("train", "test")]
    genera = sorted(set(creatures[0]["genus"]) | set(creatures[1]["genus"]))
    sets: list[tuple[str, str, list[Dataset], Callable[[Dataset], list[int]]]] = [
        ("digits", "Specialized", digits, lambda rows: rows["label"][:]),
        ("creatures", "Natural", creatures, lambda rows: [genera.index(genus) for genus in rows["genus"]]),
        ("CIFAR-10", "Natural", photos, lambda rows: rows["label"][:]),
    ]
    return [
        vtab.build_task(name, group, take(train, read(train), num_train), take(test, read(test), num_test))
        for name, group, (train, test), read in sets
    ]


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    vtab.be_quiet()
    tasks = build_tasks(*((20, 10) if quick else (100, 200)))
    recipe = vtab.Recipe(weight_decays=(1e-4,), epochs=1 if quick else 10, batch_size=20)
    source = Path(__file__).read_text(encoding="utf-8") + Path(vtab.__file__).read_text(encoding="utf-8") + str(quick)
    key = hashlib.sha256(source.encode()).hexdigest()[:8]
    out = Path(tempfile.gettempdir()) / f"fovea-vtab-nano-{key}"
    backbone = str(hf_diorama.model_path("vfm-nano-contrastive"))
    cells = vtab.run_table(backbone, tasks, METHODS[:2] if quick else METHODS, recipe, out)
    print(vtab.format_table(cells))
    return cells


PLOT = None
