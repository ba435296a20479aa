"""V-PET in miniature on creatures: two pre-trained towers, 24 species from two images each, with controls of seeds.

The towers are hf-diorama's vfm-nano-contrastive, trained without labels, and vfm-nano-supervised, which has learned
these species, or near ones, among 96 from labels: one backbone knows the task, the other does not. Four seeds draw the
labelled images, the pool and the members; towers and test images are the same for all. Intervals are 95 percent over
seeds (Student's t), differences are paired. Labelled images and the pool are from the `test` split, test images from
`heldout`; the shifted domain is `rotated`.
"""

from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset

import few_shot
import hf_diorama

SEEDS = 4
SHOTS = 2
WORLD: dict[str, Any] = {"branching": (2, 1, 1, 3, 4), "seed": 21, "image_size": 64}  # six genera of four species
NUM_POOL, NUM_TEST = 300, 300


def as_dataset(rows: Dataset, indices: list[int], prefix: str) -> Dataset:
    chosen = rows.select(indices)
    ids = [f"{prefix}-{index}" for index in indices]
    return Dataset.from_dict({"image": chosen["image"][:], "label": chosen["species"][:], "id": ids})


def draw_few(labels: list[int], shots: int, seed: int) -> tuple[list[int], list[int]]:
    """Places of so many images of each class, and of the others, in a random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: dict[int, int] = {}
    few, rest = [], []
    for index in order:
        seen[labels[index]] = seen.get(labels[index], 0) + 1
        (few if seen[labels[index]] <= shots else rest).append(index)
    return sorted(few, key=lambda index: labels[index]), rest


def build_creatures(seed: int, *, quick: bool) -> few_shot.Task:
    datasets.disable_progress_bars()
    rows = hf_diorama.load("creatures", split="test", n=1200, **WORLD)
    held_out = hf_diorama.load("creatures", split="heldout", n=NUM_TEST, **WORLD)
    few, rest = draw_few(rows["species"][:], SHOTS, seed)
    test = as_dataset(held_out, list(range(24 if quick else NUM_TEST)), "heldout")
    return few_shot.Task(
        seed=seed,
        backbones=[str(hf_diorama.model_path(f"vfm-nano-{name}")) for name in ("contrastive", "supervised")],
        label_names=rows.features["species"].names,
        labeled=as_dataset(rows, few, "test"),
        pool=as_dataset(rows, few + rest[: 32 if quick else NUM_POOL], "test"),
        test=test,
        shifted=few_shot.shift(test, "rotated"),
        learning_rates=[2e-2, 5e-3],
        augmentation="weak",
        views=("weak", "strong"),
        member_epochs=1 if quick else 15,
        student_epochs=1 if quick else 2,
        batch_size=24,
    )


def run(*, quick: bool) -> list[dict[str, Any]]:
    seeds = range(1 if quick else SEEDS)
    about = Path(__file__).read_text(encoding="utf-8") + str(quick)
    return few_shot.run_seeds("creatures", lambda seed: build_creatures(seed, quick=quick), seeds, about)


PLOT = None
