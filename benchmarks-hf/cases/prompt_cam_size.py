"""Bytes on disk: an adapter folder against a checkpoint that holds the backbone too. ViT-B/16, random weights."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from prompt_cam import PromptCAMConfig, PromptCAMForImageClassification, get_prompt_cam_model

PLOT = None


def count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(*, quick: bool) -> list[dict[str, Any]]:
    backbone = ViTModel(ViTConfig(), add_pooling_layer=False)
    rows = []
    for classes in (20,) if quick else (20, 200, 1_000):
        model = get_prompt_cam_model(backbone, PromptCAMConfig(num_classes=classes))
        with tempfile.TemporaryDirectory() as folder:
            adapter, whole = Path(folder, "adapter"), Path(folder, "whole")
            model.save_pretrained(adapter)
            loaded = PromptCAMForImageClassification.from_pretrained(adapter, backbone)
            for name, tensor in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], tensor), f"{name} has to come back bit by bit"
            whole.mkdir()
            everything = {name: value.detach().clone() for name, value in model.named_parameters()}
            save_file(everything, whole / "model.safetensors")
            row = {"classes": classes, "adapter_bytes": count_bytes(adapter), "whole_bytes": count_bytes(whole)}
        rows.append({**row, "ratio": row["whole_bytes"] / row["adapter_bytes"]})
        loaded.detach()
        model.detach()
    return rows
