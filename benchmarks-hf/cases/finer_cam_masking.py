"""What masking the pixels of a map does to the probabilities of vit-nano and convnet-nano.

The rows, models and sisters of `finer_cam_planted`. Relative drop at 5 and 10 percent masked pixels, deletion and
insertion in 10 steps, by strength of comparison. Gains are paired differences to the base map (gamma 0) with 95
percent intervals. Masked pixels become 0 after normalisation; insertion starts from a blurred image.

With images and a classifier of the user, the class is the predicted one and its sibling that of the nearest logit.
"""

from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils.logging import tqdm

from cases.finer_cam_planted import GAMMAS, METHODS, MODELS, NUM_IMAGES, TOP_CHANNELS, load_model, load_rows, summarise
from finer_cam import FinerCAM, compute_faithfulness
from given import DEVICE, Given, load_images

BATCH_SIZE = 50
NUM_STEPS = 10
NEEDS = ("classifier", "data")
NAMES = ("relative_drop_5", "relative_drop_10", "deletion", "insertion")


def measure(
    model: Any, x: torch.Tensor, target: torch.Tensor, sibling: torch.Tensor, method: str, gammas: tuple[float, ...]
) -> dict[str, Any]:
    """Scores of each image, `(num_gammas, num_images)`."""
    found: dict[str, list[Any]] = {name: [] for name in NAMES}
    cam = FinerCAM(model, method=method, gamma=gammas, channel_batch_size=128, top_channels=TOP_CHANNELS)
    for start in tqdm(range(0, len(x), BATCH_SIZE), desc=method):
        rows = slice(start, start + BATCH_SIZE)
        out = cam(x[rows], target=target[rows].tolist(), references=sibling[rows, None].tolist())
        scores = [
            compute_faithfulness(
                model, x[rows], maps, target[rows], sibling[rows], num_steps=NUM_STEPS, batch_size=256
            )
            for maps in out.maps.unbind(dim=1)
        ]
        found["relative_drop_5"].append(torch.stack([one.relative_drop[0.05] for one in scores]))
        found["relative_drop_10"].append(torch.stack([one.relative_drop[0.1] for one in scores]))
        found["deletion"].append(torch.stack([one.deletion for one in scores]))
        found["insertion"].append(torch.stack([one.insertion for one in scores]))
    return {name: torch.cat(parts, dim=1).cpu().numpy() for name, parts in found.items()}


def run(*, quick: bool) -> list[dict[str, Any]]:
    images, target, _ = load_rows(10 if quick else NUM_IMAGES)
    rows = []
    for name in MODELS:
        model, x, accuracy = load_model(name, images, target)
        for method in METHODS[:1] if quick else METHODS:
            scores = measure(model, x, target, target ^ 1, method, GAMMAS)
            for index, gamma in enumerate(GAMMAS):
                row = {"model": name, "method": method, "gamma": gamma, "images": len(images), "accuracy": accuracy}
                rows.append({**row, **summarise(scores, index, NAMES)})
    return rows


def run_given(given: Given, *, quick: bool) -> list[dict[str, Any]]:
    images, _, _ = load_images(given.data, "test", 4 if quick else NUM_IMAGES)
    model = AutoModelForImageClassification.from_pretrained(given.classifier, dtype=torch.float32).eval().to(DEVICE)
    processor = AutoImageProcessor.from_pretrained(given.classifier)
    x = processor(images, return_tensors="pt")["pixel_values"].to(DEVICE)
    with torch.inference_mode():
        nearest = torch.cat([model(part).logits.topk(2).indices for part in x.split(BATCH_SIZE)])
    gammas = (0.0, 0.6)
    scores = measure(model, x, nearest[:, 0], nearest[:, 1], "gradcam", gammas)
    return [
        {"model": given.classifier, "method": "gradcam", "gamma": gamma, "images": len(images)}
        | summarise(scores, index, NAMES)
        for index, gamma in enumerate(gammas)
    ]


PLOT = {
    "x": "gamma",
    "y": "relative_drop_5",
    "line": "method",
    "low": "relative_drop_5_low",
    "high": "relative_drop_5_high",
    "panel": "model",
}
