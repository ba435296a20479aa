"""Aggregate maps are plain tensors that the metrics of finer-cam take."""

import pytest
import torch

from prompt_cam import PromptCAMConfig, aggregate_heads, get_prompt_cam_model, smooth_maps
from support.tiny_vits import build_inputs, build_vit

finer_cam = pytest.importorskip("finer_cam")


def test_aggregate_maps_go_into_insertion_deletion_and_energy() -> None:
    model, pixels = get_prompt_cam_model(build_vit("vit"), PromptCAMConfig(num_classes=5)).eval(), build_inputs("vit")
    images, classes = pixels["pixel_values"], torch.tensor([2, 4])
    heads = smooth_maps(model.maps(images, classes), (32, 32))
    maps = aggregate_heads(heads, model.rank_heads(images, classes).order, 2)
    scores = finer_cam.compute_faithfulness(model, images, maps, classes, (classes + 1) % 5, ratios=[0.1], num_steps=4)
    probability = model.predict(images).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(scores.deletion_curve[:, 0], probability)  # nothing is masked yet
    torch.testing.assert_close(scores.insertion_curve[:, -1], probability)  # everything is back
    left = torch.zeros(2, 32, 32, dtype=torch.bool)
    left[:, :, :16] = True
    energy = finer_cam.energy_in_region(maps, left)
    torch.testing.assert_close(energy, maps[:, :, :16].sum((1, 2)) / maps.sum((1, 2)))
