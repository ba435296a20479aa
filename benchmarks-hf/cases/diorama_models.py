"""Held-out accuracy of the classifiers that ship with hf-diorama, beside the bars of their design.

Renders of `creatures`, split `heldout`, seed 2000, which nobody looked at before: the cards have seed 0. `low` and
`high` are Wilson intervals. `reached` compares the lower end with the bar. Rows of other domains show what that costs.
"""

from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_diorama

MODELS = ("vit-nano", "convnet-nano")
BAR = 0.9  # of the 96 species
SEED, NUM_ROWS = 2_000, 5_000
SHIFTED_ROWS = 1_000
DOMAINS = ("photo", "sketch", "poster", "infrared", "lowlight", "rotated")


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def load_model(name: str) -> Any:
    """Returns a function from PIL images to class labels."""
    path = hf_diorama.model_path(name)
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def predict(images: list[Any]) -> np.ndarray:
        batches = [images[start : start + 100] for start in range(0, len(images), 100)]
        logits = [model(**processor(batch, return_tensors="pt")).logits for batch in batches]
        return torch.cat(logits).argmax(dim=1).numpy()

    return predict


def measure(hits: np.ndarray, **about: Any) -> dict[str, Any]:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    row = {**about, "n": len(hits), "accuracy": float(hits.mean()), "low": low, "high": high}
    return row | ({"bar": BAR, "reached": low >= BAR} if "domain" not in about and about["rank"] == "species" else {})


def run(*, quick: bool) -> list[dict[str, Any]]:
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    ds = hf_diorama.load("creatures", "heldout", n=200 if quick else NUM_ROWS, seed=SEED, image_size=64)
    images, species = ds["image"][:], np.array(ds["species"])
    genera = np.array([name.split(" ")[0] for name in ds.features["species"].names])
    rows = []
    for name in MODELS:
        predict = load_model(name)
        found = predict(images)
        assert found.shape == species.shape
        rows.append(measure(found == species, model=name, rank="species", chance=1 / 96))
        rows.append(measure(genera[found] == genera[species], model=name, rank="genus", chance=1 / 24))
        for domain in DOMAINS[:1] if quick else DOMAINS:
            shifted = [hf_diorama.shift(image, domain, seed=i) for i, image in enumerate(images[:SHIFTED_ROWS])]
            hits = predict(shifted) == species[: len(shifted)]
            rows.append(measure(hits, model=name, rank="species", domain=domain, chance=1 / 96))
    return rows
