"""V-PET in miniature on digits: labelled-only, FixMatch, SoftMatch, ST, PET and V-PET, with controls of seeds.

Two tiny ViTs of different patch size learn scikit-learn's digits 0 to 4 with labels; members adapt them to 5 to 9 from
three images a class. Ten seeds draw the labelled images and the members; backbones and images are the same for all.
Intervals are 95 percent over seeds (Student's t), differences are paired. Labelled images and those of students are
taken as they are; FixMatch and SoftMatch have their weak and strong views, which mirror digits.

With images and two backbones of the user, members learn all classes from ten images each; five seeds, and the views
of `peft_ensemble_photos`.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import few_shot
from cases.peft_ensemble_creatures import draw_few
from given import Given, load_images

NEEDS = ("backbones", "data")
SEEDS = 10
SHOTS = 3
FIRST_TEST = 1200
BACKBONES = Path(tempfile.gettempdir()) / "fovea-peft-ensemble-digits-backbones"


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels `(N, 8, 8)` and labels."""
    digits = load_digits()
    return torch.tensor(digits.images * 15.9).round().clamp(0, 255).to(torch.uint8), torch.tensor(digits.target)


def as_dataset(pixels: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> Dataset:
    images = [Image.fromarray(pixels[index].numpy()).convert("RGB") for index in indices.tolist()]
    ids = [str(index) for index in indices.tolist()]
    return Dataset.from_dict({"image": images, "label": (labels[indices] - 5).tolist(), "id": ids})


def save_backbone(patch_size: int, pixels: torch.Tensor, labels: torch.Tensor) -> str:
    """A ViT that has learned 0 to 4 from the first 1200 digits."""
    folder = BACKBONES / f"vit-patch{patch_size}"
    if (folder / "preprocessor_config.json").exists():
        return str(folder)
    torch.manual_seed(patch_size)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, image_size=8,
        patch_size=patch_size, num_labels=5,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    known = torch.arange(FIRST_TEST)[labels[:FIRST_TEST] < 5]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(600):
        batch = known[torch.randint(len(known), (64,))]
        moved = torch.roll(pixels[batch], shifts=tuple(torch.randint(-1, 2, (2,)).tolist()), dims=(1, 2))
        pixel_values = moved[:, None].expand(-1, 3, -1, -1).float() / 127.5 - 1
        loss = model(pixel_values=pixel_values, labels=labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def build_digits(seed: int, *, quick: bool) -> few_shot.Task:
    pixels, labels = read_digits()
    generator = torch.Generator().manual_seed(seed)
    train = torch.arange(FIRST_TEST)[labels[:FIRST_TEST] >= 5]
    train = train[torch.randperm(len(train), generator=generator)]
    few = torch.cat([train[labels[train] == digit][:SHOTS] for digit in range(5, 10)])
    held_out = torch.arange(FIRST_TEST, len(labels))[labels[FIRST_TEST:] >= 5]
    test = as_dataset(pixels, labels, held_out[:40] if quick else held_out)
    return few_shot.Task(
        seed=seed,
        backbones=[save_backbone(patch_size, pixels, labels) for patch_size in (2, 4)],
        label_names=["5", "6", "7", "8", "9"],
        labeled=as_dataset(pixels, labels, few),
        pool=as_dataset(pixels, labels, train[:64] if quick else train),
        test=test,
        shifted=few_shot.shift(test, "rotated"),
        learning_rates=[2e-2, 5e-3, 1e-3],
        augmentation="none",
        views=("none",),
        member_epochs=2 if quick else 50,
        student_epochs=1 if quick else 10,
        rules=("mean_labels", "mean_probs", "mean_logits", "dawid_skene", "softmax_counts"),
    )


def run(*, quick: bool) -> list[dict[str, Any]]:
    seeds = range(2 if quick else SEEDS)
    about = Path(__file__).read_text(encoding="utf-8") + str(quick)
    return few_shot.run_seeds("digits", lambda seed: build_digits(seed, quick=quick), seeds, about)


def build_given(given: Given, seed: int, *, quick: bool) -> few_shot.Task:
    images, labels, names = load_images(given.data, "train", 200 if quick else 4_000)
    few, rest = draw_few(labels, 2 if quick else 10, seed)
    pool = few + rest[: 16 if quick else 2_000]
    tests, test_labels, _ = load_images(given.data, "test", 16 if quick else 2_000)

    def choose(indices: list[int]) -> Dataset:
        chosen = {"image": [images[index] for index in indices], "label": [labels[index] for index in indices]}
        return Dataset.from_dict({**chosen, "id": [f"train-{index}" for index in indices]})

    test = Dataset.from_dict({"image": tests, "label": test_labels, "id": [f"test-{n}" for n in range(len(tests))]})
    return few_shot.Task(
        seed=seed,
        backbones=given.backbones,
        label_names=names,
        labeled=choose(few),
        pool=choose(pool),
        test=test,
        shifted=few_shot.shift(test, "rotated"),
        learning_rates=[5e-3] if quick else [2e-2, 5e-3, 1e-3],
        augmentation="weak",
        views=("weak", "strong"),
        member_epochs=1 if quick else 25,
        student_epochs=1 if quick else 6,
    )


def run_given(given: Given, *, quick: bool) -> list[dict[str, Any]]:
    about = f"{Path(__file__).read_text(encoding='utf-8')}{given}{quick}"
    seeds = range(2 if quick else 5)
    return few_shot.run_seeds("given", lambda seed: build_given(given, seed, quick=quick), seeds, about)


PLOT = None
