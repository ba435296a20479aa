"""V-PET in miniature on photos: two small ViTs, five classes of CIFAR-10 from ten photos each, with controls of seeds.

Two ViTs of different patch size and width learn the first five classes from 20,000 training photos with labels, once;
members adapt them to the other five. Five seeds draw the labelled photos, the pool and the members; backbones and test
photos are the same for all. Intervals are 95 percent over seeds (Student's t), differences are paired. The shifted
domain is hf-diorama's `rotated`.

The photos are read from the folder of Parquet files that the environment variable CIFAR10_DIR names, or from the Hub.
The committed result is of a folder of 50,000 training and 5,000 test photos that were encoded anew as JPEG.
"""

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, set_seed
from transformers.utils.logging import tqdm

import few_shot
import hf_diorama
from cases.peft_ensemble_creatures import draw_few

SEEDS = 5
SHOTS = 10
NUM_SOURCE, NUM_POOL, NUM_TEST = 20_000, 450, 500
SIZES = {4: 64, 8: 96}  # patch size: width
BACKBONES = Path(tempfile.gettempdir()) / "fovea-peft-ensemble-photos-backbones"


@lru_cache(maxsize=2)
def load_photos(split: str) -> Dataset:
    return hf_diorama.load("cifar10", split=split, data_dir=os.environ.get("CIFAR10_DIR"))


def save_backbone(patch_size: int, num_photos: int) -> str:
    """A ViT that has learned the classes 0 to 4, from mirrored and moved photos."""
    folder = BACKBONES / f"vit-patch{patch_size}-{num_photos}"
    if (folder / "preprocessor_config.json").exists():
        return str(folder)
    set_seed(patch_size)
    photos = load_photos("train")
    known = [index for index, label in enumerate(photos["label"][:]) if label < 5][:num_photos]
    chosen = photos.select(known)
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in chosen["image"][:]])
    pixels, labels = torch.tensor(arrays).permute(0, 3, 1, 2), torch.tensor(chosen["label"][:])
    width = SIZES[patch_size]
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=4, num_attention_heads=4, intermediate_size=2 * width, image_size=32,
        patch_size=patch_size, num_labels=5,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = 5 * num_photos // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc=f"backbone of patch size {patch_size}"):
        rows = torch.randint(len(pixels), (64,))
        images = pixels[rows].float() / 127.5 - 1
        images = images.flip(3) if torch.rand(()) < 0.5 else images
        images = images.roll(tuple(torch.randint(-3, 4, (2,)).tolist()), dims=(2, 3))
        optimizer.zero_grad()
        model(pixel_values=images, labels=labels[rows]).loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def as_dataset(photos: Dataset, indices: list[int], prefix: str) -> Dataset:
    chosen = photos.select(indices)
    images = [image.convert("RGB") for image in chosen["image"][:]]
    labels = [label - 5 for label in chosen["label"][:]]
    return Dataset.from_dict({"image": images, "label": labels, "id": [f"{prefix}-{index}" for index in indices]})


def build_photos(seed: int, *, quick: bool) -> few_shot.Task:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    backbones = [save_backbone(patch_size, 256 if quick else NUM_SOURCE) for patch_size in SIZES]
    train, held_out = load_photos("train"), load_photos("test")
    labels = train["label"][:]
    new = [index for index, label in enumerate(labels) if label >= 5][:10_000]
    few, rest = draw_few([labels[index] for index in new], SHOTS, seed)
    few, rest = [new[index] for index in few], [new[index] for index in rest]
    tests = [index for index, label in enumerate(held_out["label"][:]) if label >= 5]
    test = as_dataset(held_out, tests[: 24 if quick else NUM_TEST], "test")
    return few_shot.Task(
        seed=seed,
        backbones=backbones,
        label_names=train.features["label"].names[5:],
        labeled=as_dataset(train, few, "train"),
        pool=as_dataset(train, few + rest[: 32 if quick else NUM_POOL], "train"),
        test=test,
        shifted=few_shot.shift(test, "rotated"),
        learning_rates=[2e-2, 5e-3, 1e-3],
        augmentation="weak",
        views=("weak", "strong"),
        member_epochs=1 if quick else 25,
        student_epochs=1 if quick else 6,
    )


def run(*, quick: bool) -> list[dict[str, Any]]:
    seeds = range(1 if quick else SEEDS)
    about = Path(__file__).read_text(encoding="utf-8") + str(quick)
    return few_shot.run_seeds("photos", lambda seed: build_photos(seed, quick=quick), seeds, about)


PLOT = None
