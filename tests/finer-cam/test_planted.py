"""Trained models and parts that are known: with the sister species as reference, maps move to the part that differs.

The whole experiment is `benchmarks-hf/cases/finer_cam_planted.py`.
"""

import math

import numpy as np
import pytest
import torch

from finer_cam import FinerCAM, compute_faithfulness, energy_in_region

hf_diorama = pytest.importorskip("hf_diorama")
transformers = pytest.importorskip("transformers")
Rows = tuple[list[object], torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Images, species, and masks of the part in which they differ from their sister."""
    images, species, masks = [], [], []
    for row in hf_diorama.load("creatures", split="heldout", n=70, image_size=64):
        (part,) = hf_diorama.discriminating_parts(row["species"], row["species"] ^ 1)
        mask = np.asarray(row["part_masks"]) == 1 + [one["name"] for one in row["parts"]].index(part)
        if mask.any():
            images.append(row["image"])
            species.append(row["species"])
            masks.append(torch.from_numpy(mask))
    return images, torch.tensor(species), torch.stack(masks)


def significance(gain: torch.Tensor) -> float:
    """The mean of paired differences in units of its standard error."""
    return float(gain.mean() / gain.std() * math.sqrt(len(gain)))


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize("name", ["vit-nano", "convnet-nano"])
def test_energy_moves_to_the_part_that_differs(rows: Rows, name: str, method: str) -> None:
    images, species, masks = rows
    path = hf_diorama.model_path(name)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    model = transformers.AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    x = processor(images, return_tensors="pt")["pixel_values"]
    cam = FinerCAM(model, method=method, gamma=[0.0, 0.6, 1.0])
    out = cam(x, target=species.tolist(), references=(species[:, None] ^ 1).tolist())
    base, finer, finest = energy_in_region(out.maps, masks[:, None].expand(-1, 3, -1, -1)).unbind(dim=1)
    assert significance(finer - base) > 1.96
    assert significance(finest - base) > 1.96
    assert float(finest.mean()) > float(masks.float().mean())  # more than a map that is equal everywhere


def test_masking_the_true_part_drops_the_species_more_than_its_sister(rows: Rows) -> None:
    images, species, masks = rows
    path = hf_diorama.model_path("convnet-nano")
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    model = transformers.AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    x = processor(images, return_tensors="pt")["pixel_values"]
    scores = compute_faithfulness(model, x, masks.float(), species, species ^ 1, ratios=[0.05], num_steps=0)
    assert float(scores.relative_drop[0.05].mean()) > 0.3
