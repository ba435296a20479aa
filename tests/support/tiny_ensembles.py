"""Two tiny backbones on disk and images of a few colours, for ensembles that train in seconds."""

from pathlib import Path
from typing import Any

import torch
from datasets import Array3D, Dataset, Features, Value
from peft import LoraConfig
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from peft_ensemble import AdaptFormerConfig, MemberSpec, PeftEnsemble

LABEL_NAMES = ["red", "green", "blue"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}


def save_backbones(folder: Path) -> list[str]:
    """A ViT and a DINOv2 with random weights and their image processors."""
    torch.manual_seed(0)
    models = {
        "tiny-vit": ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=64)),
        "tiny-dino": Dinov2ForImageClassification(Dinov2Config(**SIZES, mlp_ratio=2)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / name)
    return [str(folder / name) for name in models]


def draw_images(count: int, seed: int, contrast: int = 60, ids: bool = True) -> Dataset:
    """Noisy images in which one colour is stronger."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = 100 + 40 * torch.randn(count, 16, 16, 3, generator=generator)
    pixels = pixels + contrast * torch.nn.functional.one_hot(labels, 3)[:, None, None]
    rows: dict[str, Any] = {"image": pixels.clamp(0, 255).to(torch.uint8).numpy(), "label": labels.tolist()}
    features = {"image": Array3D((16, 16, 3), "uint8"), "label": Value("int64")}
    if ids:
        rows["id"] = [f"{seed}-{index}" for index in range(count)]
        features["id"] = Value("string")
    return Dataset.from_dict(rows, features=Features(features))


def arguments(**options: Any) -> TrainingArguments:
    values = {"num_train_epochs": 4, "per_device_train_batch_size": 6, "learning_rate": 1e-2, "save_strategy": "epoch"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "report_to": []}
    return TrainingArguments(output_dir="unused", **{**values, **quiet, **options})


def build_specs(backbones: list[str]) -> list[MemberSpec]:
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    methods = [AdaptFormerConfig(bottleneck=4), lora]
    return MemberSpec.grid(backbones, methods, {"learning_rate": [1e-2, 1e-5]})


def run(folder: Path) -> Dataset:
    """Trains an ensemble, halving its candidates on the way, and its student, in a folder with backbones."""
    methods = [AdaptFormerConfig(bottleneck=4, blocks=[1])]
    search = {"learning_rate": [1e-2, 1e-5], "drop_path": [0.2]}
    specs = MemberSpec.grid([str(folder / "tiny-vit")], methods, search)
    ensemble = PeftEnsemble(specs, LABEL_NAMES, folder / "ensemble")
    pool = draw_images(30, seed=1)
    ensemble.fit(draw_images(12, seed=0), arguments(), unlabeled_val=pool, halving=2)
    targets = ensemble.pseudo_label(pool)
    ensemble.self_train(targets, pool, ensemble.members[0], arguments())
    return targets
