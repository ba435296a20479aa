"""Which claims of the two papers hold in the partial_tune experiments: paired differences over seeds, with intervals.

Reads results/partial_tune_digits.json, partial_tune_creatures.json and partial_tune_photos.json, made by the cases of
these names. A claim holds if the whole 95 percent interval is on its side, fails if it is on the other, and is open
otherwise.

With images and a classifier of the user, the protocol is that of `partial_tune_photos`: all weights are tuned on half
of the classes of the images, in hf-diorama's `rotated` shift of them.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils.logging import tqdm

import hf_diorama
from cases.partial_tune_digits import NUM_SEEDS, T_975, Experiment, Samples, run_seed, summarise
from given import DEVICE, Given, load_images, match_classes
from partial_tune import ClassPartition, interpolate

NEEDS = ("classifier", "data")
NUM_TRAIN, NUM_TEST = 2_000, 2_000
RESULTS = Path(__file__).resolve().parents[1] / "results"
EXPERIMENTS = ("digits", "creatures", "photos")
FT, SOURCE, LOCAL = "fine-tuned", "source", "LOLSGD"
# claim, paper, (row, column) that should be larger, (row, column) that should be smaller
CLAIMS = (
    ("fine-tuning lowers absent accuracy", "FFC", (SOURCE, "U/Y"), (FT, "U/Y")),
    ("fine-tuning raises seen accuracy", "FFC", (FT, "S/Y"), (SOURCE, "S/Y")),
    ("accuracy within absent classes rises", "FFC", (FT, "U/U"), (SOURCE, "U/U")),
    ("absent features get better (NCM)", "FFC", (FT, "NCM U/Y"), (SOURCE, "NCM U/Y")),
    ("AUSUC rises", "FFC", (FT, "AUSUC"), (SOURCE, "AUSUC")),
    ("ALG restores absent accuracy", "FFC", ("fine-tuned + ALG", "U/Y"), (FT, "U/Y")),
    ("ALG raises overall accuracy", "FFC", ("fine-tuned + ALG", "Y/Y"), (FT, "Y/Y")),
    ("with ALG absent accuracy is above the source's", "FFC", ("fine-tuned + ALG", "U/Y"), (SOURCE, "U/Y")),
    ("the best offset is better than ALG", "FFC", ("fine-tuned + oracle gamma", "Y/Y"), ("fine-tuned + ALG", "Y/Y")),
    ("ratio-PCV is better than ALG", "ours", ("fine-tuned + ratio-PCV", "Y/Y"), ("fine-tuned + ALG", "Y/Y")),
    ("fine-tuning beats a frozen head in AUSUC", "FFC", (FT, "AUSUC"), ("frozen head", "AUSUC")),
    ("LOLSGD keeps absent accuracy better", "HT", (LOCAL, "U/Y"), (FT, "U/Y")),
    ("LOLSGD is better overall", "HT", (LOCAL, "Y/Y"), (FT, "Y/Y")),
    ("calibrated fine-tuning beats LOLSGD overall", "FFC", ("fine-tuned + ALG", "Y/Y"), (LOCAL, "Y/Y")),
    ("LOLSGD gains from calibration", "FFC", ("LOLSGD + ALG", "Y/Y"), (LOCAL, "Y/Y")),
)


def compare(experiment: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each claim, from the rows of the methods."""
    seeds = {row["method"]: row["samples"] for row in results}
    assert all(len(samples) == NUM_SEEDS for samples in seeds.values()), f"not {NUM_SEEDS} seeds of {experiment}"
    rows = []
    for claim, paper, (more, column), (less, other) in CLAIMS:
        pairs = zip(seeds[more], seeds[less], strict=True)
        gains = np.array([one[column] - two[other] for one, two in pairs])
        half = T_975 * gains.std(ddof=1) / np.sqrt(NUM_SEEDS)
        low, high = gains.mean() - half, gains.mean() + half
        rows.append(
            {
                "experiment": experiment,
                "claim": claim,
                "paper": paper,
                "gain": float(gains.mean()),
                "low": float(low),
                "high": float(high),
                "verdict": "holds" if low > 0 else "does not hold here" if high < 0 else "open here",
                "samples": gains.tolist(),
            }
        )
    return rows


def run(*, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for experiment in EXPERIMENTS:
        path = RESULTS / f"partial_tune_{experiment}.json"
        if path.exists():
            rows += compare(experiment, json.loads(path.read_text(encoding="utf-8"))["rows"])
    assert rows, "no results: run the cases partial_tune_digits, partial_tune_creatures and partial_tune_photos first"
    return rows


def load_samples(given: Given, model: Any, split: str, count: int) -> tuple[Samples, Samples, list[int]]:
    """Images as they are and in the new domain, labelled with the model's classes, and those classes."""
    images, labels, names = load_images(given.data, split, count)
    classes = match_classes(model.config, names)
    processor = AutoImageProcessor.from_pretrained(given.classifier)
    shifted = [hf_diorama.shift(image, "rotated", seed=index) for index, image in enumerate(images)]
    both = (processor(some, return_tensors="pt")["pixel_values"] for some in (images, shifted))
    own, new = (Samples(pixels, torch.tensor(classes)[labels]) for pixels in both)
    return own, new, classes


def run_given(given: Given, *, quick: bool) -> list[dict[str, Any]]:
    model = AutoModelForImageClassification.from_pretrained(given.classifier, dtype=torch.float32).eval().to(DEVICE)
    _, train, classes = load_samples(given, model, "train", NUM_TRAIN)  # every class has to be in it
    source_test, test, _ = load_samples(given, model, "test", 64 if quick else NUM_TEST)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    found = []
    for seed in tqdm(range(NUM_SEEDS), desc="seeds"):
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
        seen = [names[classes[index]] for index in order[: len(order) // 2]]
        experiment = Experiment(
            source=lambda: copy.deepcopy(model),
            train=train,
            test=test,
            source_test=source_test,
            partition=ClassPartition.from_names(model.config, seen),
            seed=seed,
            options={
                "max_steps": 2 if quick else 100,
                "per_device_train_batch_size": 16 if quick else 64,
                "learning_rate": 3e-3,
                "lr_scheduler_type": "cosine",
                "max_grad_norm": 0.0,
            },
            optimizer=(torch.optim.SGD, {"lr": 3e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
            workers=2 if quick else 4,
            rounds=1 if quick else 5,
        )
        found.append(run_seed(experiment, lambda source, tuned: interpolate(source, tuned, 0.5)))
    return compare(f"{given.classifier} on {given.data}", summarise(found, "given"))


PLOT = None
