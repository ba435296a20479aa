"""V-PET in miniature on digits: labelled-only, ST, PET and V-PET, rules of combination, seed controls.

Two tiny ViTs of different patch size learn scikit-learn's digits 0 to 4 with labels; members adapt them to 5 to 9 from
three images a class. Everything is repeated over seeds that draw the labelled images and the members; intervals are 95
percent over seeds (Student's t), differences are paired. One setting, chosen in advance and not tuned. Members and
students are kept in a folder of the system's temporary directory, so that an interrupted run goes on.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Array3D, Dataset, Features, Value
from peft import LoraConfig
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import tqdm

from peft_ensemble import MemberSpec, PeftEnsemble, SSFConfig, aggregate

SEEDS = 10
SHOTS = 3
NAMES = ["5", "6", "7", "8", "9"]
WORK = Path(tempfile.gettempdir()) / "fovea-peft-ensemble-digits"
T_975 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    pixels = torch.tensor(digits.images * 15.9).round().clamp(0, 255).to(torch.uint8)
    return pixels[..., None].expand(-1, -1, -1, 3), torch.tensor(digits.target)


def as_dataset(pixels: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> Dataset:
    features = {"image": Array3D((8, 8, 3), "uint8"), "label": Value("int64"), "id": Value("string")}
    rows = {
        "image": pixels[indices].contiguous().numpy(),
        "label": (labels[indices] - 5).tolist(),
        "id": [str(index) for index in indices.tolist()],
    }
    return Dataset.from_dict(rows, features=Features(features))


def save_backbone(patch_size: int, pixels: torch.Tensor, labels: torch.Tensor) -> str:
    """A ViT that has learned 0 to 4 from the first 1200 digits."""
    folder = WORK / f"vit-patch{patch_size}"
    if (folder / "preprocessor_config.json").exists():
        return str(folder)
    torch.manual_seed(patch_size)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, image_size=8,
        patch_size=patch_size, num_labels=5,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    known = torch.arange(1200)[labels[:1200] < 5]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(600):
        batch = known[torch.randint(len(known), (64,))]
        moved = torch.roll(pixels[batch], shifts=tuple(torch.randint(-1, 2, (2,)).tolist()), dims=(1, 2))
        pixel_values = moved.permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = model(pixel_values=pixel_values, labels=labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def build_args(epochs: int, batch_size: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir="unused", num_train_epochs=epochs, per_device_train_batch_size=batch_size, learning_rate=5e-3,
        lr_scheduler_type="cosine", weight_decay=5e-4, use_cpu=True, disable_tqdm=True, logging_strategy="no",
        save_strategy="no", report_to=[],
    )  # fmt: skip


def accuracy(probabilities: torch.Tensor, dataset: Dataset) -> float:
    return float((probabilities.argmax(-1) == torch.tensor(dataset["label"][:])).double().mean())


def run_seed(seed: int, backbones: list[str], pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    train = torch.arange(1200)[labels[:1200] >= 5]
    train = train[torch.randperm(len(train), generator=generator)]
    few = torch.cat([train[labels[train] == digit][:SHOTS] for digit in range(5, 10)])
    test = torch.arange(1200, len(labels))[labels[1200:] >= 5]
    labeled, pool, held_out = (as_dataset(pixels, labels, indices) for indices in (few, train, test))
    lora = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    members = MemberSpec.grid(backbones, [lora, SSFConfig()], {"augmentation": ["none"]}, seeds=[seed])
    controls = {
        name: MemberSpec.grid(
            [backbone], [lora], {"augmentation": ["none"]}, seeds=[1000 + 4 * seed + k for k in range(4)]
        )
        for name, backbone in zip(("seeds_b0", "seeds_b1"), backbones, strict=True)
    }
    teams = {"v_pet": members, "pet": members[:2], "st": members[:1], **controls}
    result: dict[str, float] = {}
    ensembles = {}
    for name, specs in teams.items():
        ensemble = PeftEnsemble(specs, NAMES, WORK / f"seed-{seed}" / name)
        ensembles[name] = ensemble.fit(labeled, build_args(50, 15))
        _, logits = ensemble.member_logits(held_out)
        truth = torch.tensor(held_out["label"][:])
        right = (logits.argmax(-1) == truth).double().mean(dim=1)
        result |= {f"{name}/mean_member": float(right.mean()), f"{name}/member_0": float(right[0])}
        for rule in ("mean_labels", "mean_probs", "mean_logits", "dawid_skene"):
            result[f"{name}/{rule}"] = float((aggregate(logits, rule).argmax(-1) == truth).double().mean())
        if len(specs) > 1:
            report = ensemble.diversity(held_out)
            result |= {f"{name}/agreement": report.pairs["agreement"], f"{name}/oracle": report.ensembles["oracle"]}
    student = MemberSpec(backbone=backbones[0], method=lora, seed=seed)
    unlabeled = pool.remove_columns("label")
    lessons = [("st", "mean_labels"), ("pet", "mean_labels"), ("v_pet", "mean_labels"), ("v_pet", "mean_probs")]
    for name, rule in [*lessons, ("v_pet", "softmax_counts")]:
        targets = ensembles[name].pseudo_label(unlabeled, rule)
        taught = ensembles[name].self_train(
            targets, unlabeled, student, build_args(10, 32), labeled="override", views=("none",)
        )
        result[f"student/{name}/{rule}"] = accuracy(
            ensembles[name].predict_student(taught, student, held_out), held_out
        )
    return result


def interval(values: np.ndarray) -> tuple[float, float, float]:
    half = T_975[len(values)] * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


COMPARISONS = {
    "student of V-PET over student of ST": ("student/v_pet/mean_labels", "student/st/mean_labels"),
    "student of V-PET over student of PET": ("student/v_pet/mean_labels", "student/pet/mean_labels"),
    "student of V-PET over labelled-only": ("student/v_pet/mean_labels", "st/member_0"),
    "student of ST over labelled-only": ("student/st/mean_labels", "st/member_0"),
    "mean labels over mean probs, 4 members": ("v_pet/mean_labels", "v_pet/mean_probs"),
    "mean labels over mean logits, 4 members": ("v_pet/mean_labels", "v_pet/mean_logits"),
    "votes / K over softmax of counts, student": ("student/v_pet/mean_labels", "student/v_pet/softmax_counts"),
    "V-PET over 4 seeds on backbone 0, mean probs": ("v_pet/mean_probs", "seeds_b0/mean_probs"),
    "V-PET over 4 seeds on backbone 1, mean probs": ("v_pet/mean_probs", "seeds_b1/mean_probs"),
    "agreement: mixed members over seeds on backbone 0": ("v_pet/agreement", "seeds_b0/agreement"),
    "agreement: mixed members over seeds on backbone 1": ("v_pet/agreement", "seeds_b1/agreement"),
}


def run(*, quick: bool) -> list[dict[str, Any]]:
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("peft_ensemble").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    pixels, labels = read_digits()
    backbones = [save_backbone(patch_size, pixels, labels) for patch_size in (2, 4)]
    seeds = range(2 if quick else SEEDS)
    results = [run_seed(seed, backbones, pixels, labels) for seed in tqdm(seeds, desc="seeds")]
    rows = []
    for key in results[0]:
        values = np.array([result[key] for result in results])
        mean, low, high = interval(values)
        rows.append(
            {"what": key, "value": mean, "low": low, "high": high, "seeds": len(values), "samples": values.tolist()}
        )
    for name, (first, second) in COMPARISONS.items():
        values = np.array([result[first] - result[second] for result in results])
        mean, low, high = interval(values)
        row = {"what": name, "value": mean, "low": low, "high": high, "seeds": len(values), "samples": values.tolist()}
        rows.append({**row, "ups": int((values > 0).sum())})
    return rows
