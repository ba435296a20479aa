"""What masking the pixels of a map does to the probabilities of vit-nano and convnet-nano.

The rows, models and sisters of `finer_cam_planted`. Relative drop at 5 and 10 percent masked pixels, deletion and
insertion in 10 steps, by strength of comparison. Gains are paired differences to the base map (gamma 0) with 95
percent intervals. Masked pixels become 0 after normalisation; insertion starts from a blurred image.
"""

from typing import Any

import torch
from transformers.utils.logging import tqdm

from cases.finer_cam_planted import GAMMAS, METHODS, MODELS, NUM_IMAGES, TOP_CHANNELS, load_model, load_rows, summarise
from finer_cam import FinerCAM, compute_faithfulness

BATCH_SIZE = 50
NUM_STEPS = 10
NAMES = ("relative_drop_5", "relative_drop_10", "deletion", "insertion")


def measure(model: Any, x: torch.Tensor, target: torch.Tensor, method: str) -> dict[str, Any]:
    """Scores of each image, `(num_gammas, num_images)`."""
    found: dict[str, list[Any]] = {name: [] for name in NAMES}
    cam = FinerCAM(model, method=method, gamma=GAMMAS, channel_batch_size=128, top_channels=TOP_CHANNELS)
    for start in tqdm(range(0, len(x), BATCH_SIZE), desc=method):
        rows = slice(start, start + BATCH_SIZE)
        out = cam(x[rows], target=target[rows].tolist(), references=(target[rows, None] ^ 1).tolist())
        scores = [
            compute_faithfulness(
                model, x[rows], maps, target[rows], target[rows] ^ 1, num_steps=NUM_STEPS, batch_size=256
            )
            for maps in out.maps.unbind(dim=1)
        ]
        found["relative_drop_5"].append(torch.stack([one.relative_drop[0.05] for one in scores]))
        found["relative_drop_10"].append(torch.stack([one.relative_drop[0.1] for one in scores]))
        found["deletion"].append(torch.stack([one.deletion for one in scores]))
        found["insertion"].append(torch.stack([one.insertion for one in scores]))
    return {name: torch.cat(parts, dim=1).numpy() for name, parts in found.items()}


def run(*, quick: bool) -> list[dict[str, Any]]:
    images, target, _ = load_rows(10 if quick else NUM_IMAGES)
    rows = []
    for name in MODELS:
        model, x, accuracy = load_model(name, images, target)
        for method in METHODS[:1] if quick else METHODS:
            scores = measure(model, x, target, method)
            for index, gamma in enumerate(GAMMAS):
                row = {"model": name, "method": method, "gamma": gamma, "images": len(images), "accuracy": accuracy}
                rows.append({**row, **summarise(scores, index, NAMES)})
    return rows


PLOT = {
    "x": "gamma",
    "y": "relative_drop_5",
    "line": "method",
    "low": "relative_drop_5_low",
    "high": "relative_drop_5_high",
    "panel": "model",
}
