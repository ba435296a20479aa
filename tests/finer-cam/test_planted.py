"""Trained models and parts that are known: with the sister species as reference, maps move to the part that differs.

The whole experiment is `benchmarks-hf/cases/finer_cam_planted.py`.
"""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finer_cam import FinerCAM, compute_faithfulness, energy_in_region

hf_diorama = pytest.importorskip("hf_diorama")
transformers = pytest.importorskip("transformers")
EXAMPLES = Path(__file__).resolve().parents[2] / "packages" / "finer-cam" / "examples"
Rows = tuple[list[Any], torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Images, species, and masks of the part in which they differ from their sister."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        read_creature = importlib.import_module("creatures").read_creature
    heldout = hf_diorama.load("creatures", split="heldout", n=70, image_size=64)
    found = [creature for creature in map(read_creature, heldout) if creature.mask.any()]
    masks = torch.stack([creature.mask for creature in found])
    return [creature.image for creature in found], torch.tensor([creature.species for creature in found]), masks


def load(name: str, images: list[Any]) -> tuple[Any, torch.Tensor]:
    """A nano model and its pixel values."""
    path = hf_diorama.model_path(name)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    model = transformers.AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    return model, processor(images, return_tensors="pt")["pixel_values"]


def significance(gain: torch.Tensor) -> float:
    """The mean of paired differences in units of its standard error."""
    return float(gain.mean() / gain.std() * math.sqrt(len(gain)))


@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam"])
@pytest.mark.parametrize("name", ["vit-nano", "convnet-nano"])
def test_energy_moves_to_the_part_that_differs(rows: Rows, name: str, method: str) -> None:
    images, species, masks = rows
    model, x = load(name, images)
    cam = FinerCAM(model, method=method, gamma=[0.0, 0.6, 1.0], top_channels=16, channel_batch_size=128)
    out = cam(x, target=species.tolist(), references=(species[:, None] ^ 1).tolist())
    base, finer, finest = energy_in_region(out.maps, masks[:, None].expand(-1, 3, -1, -1)).unbind(dim=1)
    assert significance(finer - base) > 1.96
    assert significance(finest - base) > 1.96
    assert float(finest.mean()) > float(masks.float().mean())  # more than a map that is equal everywhere


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_relative_drop_rises_over_the_base_map(rows: Rows, method: str) -> None:
    """On `convnet-nano`; the gains of `vit-nano` need more images than a test has, see the benchmark."""
    images, species, _ = rows
    model, x = load("convnet-nano", images)
    out = FinerCAM(model, method=method)(x, target=species.tolist(), references=(species[:, None] ^ 1).tolist())
    base, finer = (
        compute_faithfulness(model, x, one.maps, species, species ^ 1, ratios=[0.05, 0.1], num_steps=0).relative_drop
        for one in (out.regamma(0.0), out)
    )
    for ratio in (0.05, 0.1):
        assert significance(finer[ratio] - base[ratio]) > 1.96


def test_masking_the_true_part_drops_the_species_more_than_its_sister(rows: Rows) -> None:
    images, species, masks = rows
    model, x = load("convnet-nano", images)
    scores = compute_faithfulness(model, x, masks.float(), species, species ^ 1, ratios=[0.05], num_steps=0)
    assert float(scores.relative_drop[0.05].mean()) > 0.3
