"""Energy of maps in the part that two sister species differ in, for vit-nano and convnet-nano.

Held-out renders of `creatures`; target: the true species; reference: its sister, which differs in exactly one part,
whose pixels are known. Rows without that part in view are left out. Gains are paired differences to the base map
(gamma 0) with 95 percent intervals. Score-CAM runs on the 16 channels of largest variance. What masking does to the
probabilities is `finer_cam_masking`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils.logging import tqdm

import hf_diorama
from finer_cam import FinerCAM, energy_in_region, pointing_game

sys.path.append(str(Path(__file__).resolve().parents[2] / "packages/finer-cam/examples"))
from creatures import read_creature

MODELS = ("vit-nano", "convnet-nano")
METHODS = ("gradcam", "layercam", "scorecam")
GAMMAS = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)
NUM_IMAGES = 300
BATCH_SIZE = 50
TOP_CHANNELS = 16


def load_rows(count: int) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
    """Images, true species, and masks of the part in which they differ from their sister, where it is in view."""
    rows = hf_diorama.load("creatures", split="heldout", n=2 * count, image_size=64)
    found = [creature for creature in map(read_creature, rows) if creature.mask.any()][:count]
    assert len(found) == count, f"only {len(found)} rows have the part in view"
    masks = torch.stack([creature.mask for creature in found])
    return [creature.image for creature in found], torch.tensor([creature.species for creature in found]), masks


def load_model(name: str, images: list[Any], target: torch.Tensor) -> tuple[Any, torch.Tensor, float]:
    """A nano model, its pixel values, and its accuracy on the rows."""
    path = hf_diorama.model_path(name)
    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    x = AutoImageProcessor.from_pretrained(path)(images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        accuracy = float((model(x).logits.argmax(1) == target).float().mean())
    assert accuracy > 0.85, f"{name} is right on {accuracy:.0%} only"
    return model, x, accuracy


def measure(model: Any, x: torch.Tensor, target: torch.Tensor, masks: torch.Tensor, method: str) -> dict[str, Any]:
    """Scores of each image, `(num_gammas, num_images)`."""
    found: dict[str, list[Any]] = {"energy": [], "pointing": [], "empty": []}
    cam = FinerCAM(model, method=method, gamma=GAMMAS, channel_batch_size=128, top_channels=TOP_CHANNELS)
    for start in tqdm(range(0, len(x), BATCH_SIZE), desc=method):
        rows = slice(start, start + BATCH_SIZE)
        out = cam(x[rows], target=target[rows].tolist(), references=(target[rows, None] ^ 1).tolist())
        inside = masks[rows, None].expand(-1, len(GAMMAS), -1, -1)
        found["energy"].append(energy_in_region(out.maps, inside).T)
        found["pointing"].append(pointing_game(out.maps, inside).T.float())
        found["empty"].append(out.is_empty.T.float())
    return {name: torch.cat(parts, dim=1).numpy() for name, parts in found.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 percent interval of the mean."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def summarise(scores: dict[str, np.ndarray], index: int, names: tuple[str, ...]) -> dict[str, Any]:
    """One row: means of a gamma, and gains over the base map with intervals."""
    row: dict[str, Any] = {}
    for name in names:
        values, base = scores[name][index], scores[name][0]
        row[name] = float(values.mean())
        row[f"{name}_low"], row[f"{name}_high"] = interval(values)
        row[f"{name}_gain"] = float((values - base).mean())
        row[f"{name}_gain_low"], row[f"{name}_gain_high"] = interval(values - base)
    return row


def run(*, quick: bool) -> list[dict[str, Any]]:
    images, target, masks = load_rows(20 if quick else NUM_IMAGES)
    rows = []
    for name in MODELS:
        model, x, accuracy = load_model(name, images, target)
        for method in METHODS:
            scores = measure(model, x, target, masks, method)
            for index, gamma in enumerate(GAMMAS):
                row = {"model": name, "method": method, "gamma": gamma, "images": len(images), "accuracy": accuracy}
                row |= summarise(scores, index, ("energy", "pointing"))
                row |= {"empty": float(scores["empty"][index].mean()), "part_area": float(masks.float().mean())}
                energies = (1000 * scores["energy"][index]).round().astype(int).tolist()
                rows.append({**row, "samples": {"energy_per_mille": energies}})
    return rows


PLOT = {"x": "gamma", "y": "energy", "line": "method", "low": "energy_low", "high": "energy_high", "panel": "model"}
