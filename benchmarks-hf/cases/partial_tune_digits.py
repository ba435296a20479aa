"""Digits, a ConvNet: fine-tuning on 5 of 10 classes in a new domain, and what repairs the other 5.

Source domain: scikit-learn's scans. Target domain: rotated, shrunk, less contrast, noise. Five seeds; each draws
classes, splits, initial weights and batches. Gradients are not clipped. This file also holds the protocol of the other
partial_tune experiments.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import set_seed
from transformers.utils.logging import tqdm

from partial_tune import (
    ClassPartition,
    LogitCalibrator,
    PartialTuneArguments,
    PartialTuneTrainer,
    group_accuracies,
    interpolate,
    seen_absent_sweep,
)
from partial_tune.functional import ncm_scores
from partial_tune.running import collect
from partial_tune.upstream import find_head

NUM_SEEDS = 5
T_975 = 2.776  # of Student's t with NUM_SEEDS - 1 degrees of freedom
COLUMNS = ("Y/Y", "S/Y", "U/Y", "S/S", "U/U", "AUSUC", "NCM U/Y", "gamma")
Rows = dict[str, dict[str, Any]]  # of one seed, by method: the columns, as fractions


class Samples(Dataset[dict[str, Tensor]]):
    """Images and labels as the mappings that `Trainer` wants."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}

    def of(self, classes: tuple[int, ...]) -> "Samples":
        rows = torch.isin(self.labels, torch.tensor(classes))
        return Samples(self.images[rows], self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One seed of one experiment: a source model, and data of all classes.

    Args:
        source: makes a fresh copy of the source model.
        train, test: target domain.
        source_test: the test samples in the source domain.
        options: of `PartialTuneArguments`.
    """

    source: Callable[[], nn.Module]
    train: Samples
    test: Samples
    source_test: Samples
    partition: ClassPartition
    seed: int
    options: dict[str, Any]
    optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]]
    workers: int = 5
    rounds: int = 10


def tune(experiment: Experiment, method: str, *, all_classes: bool = False) -> tuple[nn.Module, PartialTuneTrainer]:
    """A copy of the source model trained on the seen classes, or on all of them: the upper bound."""
    partition = experiment.partition
    everything = tuple(range(partition.num_classes))
    model = experiment.source()
    with tempfile.TemporaryDirectory() as folder:
        args = PartialTuneArguments(
            output_dir=folder,
            method=method,
            workers=experiment.workers,
            rounds=experiment.rounds,
            seed=experiment.seed,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            **experiment.options,
        )
        trainer = PartialTuneTrainer(
            model,
            args,
            partition=partition,
            source_model=experiment.source(),
            train_dataset=experiment.train.of(partition.seen),
            optimizer_cls_and_kwargs=experiment.optimizer,
        )
        if all_classes:  # after the check that keeps them out
            trainer.train_dataset = experiment.train.of(everything)
        trainer.train()
    return model, trainer


def measure_source_domain(experiment: Experiment) -> dict[str, float | None]:
    """The source model in its own domain; without NCM, whose class means are of the target domain."""
    logits, labels, _ = collect(experiment.source(), DataLoader(experiment.source_test, batch_size=128))
    found = group_accuracies(logits, labels, experiment.partition)
    ausuc = seen_absent_sweep(logits, labels, experiment.partition).ausuc
    return {name: {**found, "AUSUC": ausuc, "gamma": 0.0}.get(name) for name in COLUMNS}


def measure(experiment: Experiment, model: nn.Module, *gammas: float) -> list[dict[str, float | None]]:
    """The columns of one row for no offset and for each offset, on the test set of the target domain."""
    partition = experiment.partition
    head = find_head(model, partition.num_classes)
    logits, labels, features = collect(model, DataLoader(experiment.test, batch_size=128), head)
    _, train_labels, reference = collect(model, DataLoader(experiment.train, batch_size=128), head)
    assert train_labels is not None
    scores = ncm_scores(features, reference, train_labels, partition.num_classes)
    ausuc = seen_absent_sweep(logits, labels, partition).ausuc
    probe = group_accuracies(scores, labels, partition)["U/Y"]
    rows = []
    for gamma in (0.0, *gammas):
        found = group_accuracies(logits, labels, partition, gamma=gamma)
        row = {**found, "AUSUC": ausuc, "NCM U/Y": probe, "gamma": gamma}
        rows.append({name: row[name] for name in COLUMNS})
    return rows


def run_seed(experiment: Experiment, mix: Callable[[nn.Module, nn.Module], nn.Module]) -> Rows:
    """All rows of one seed."""
    partition, test = experiment.partition, DataLoader(experiment.test, batch_size=128)
    rows: Rows = {"source, own domain": measure_source_domain(experiment)}
    rows["source"] = measure(experiment, experiment.source())[0]
    model, trainer = tune(experiment, "finetune")
    estimates = {
        "ALG": trainer.fit_calibrator("alg").estimate,
        "ratio-PCV": trainer.fit_calibrator("pcv_ratio").estimate,
        "oracle gamma": LogitCalibrator.fit(model, test, partition, "oracle").estimate,
    }
    names = ["fine-tuned", *(f"fine-tuned + {name}" for name in estimates)]
    gammas = [estimate.gamma for estimate in estimates.values()]
    rows |= dict(zip(names, measure(experiment, model, *gammas), strict=True))
    rows["fine-tuned + ratio-PCV"]["fallback"] = estimates["ratio-PCV"].details.get("fallback")
    middle = mix(experiment.source(), model)
    rows["interpolation 0.5"] = measure(experiment, middle)[0]
    frozen, _ = tune(experiment, "frozen_head")
    rows["frozen head"] = measure(experiment, frozen)[0]
    local, trainer = tune(experiment, "lolsgd")
    rows["LOLSGD"], rows["LOLSGD + ALG"] = measure(experiment, local, trainer.fit_calibrator("alg").gamma)
    rows["trained on all classes"] = measure(experiment, tune(experiment, "finetune", all_classes=True)[0])[0]
    return rows


def summarise(seeds: list[Rows], name: str) -> list[dict[str, Any]]:
    """One row for each method: mean over seeds and half width of the 95 percent interval of each column.

    `fell back` counts the seeds in which ratio-PCV could not be trusted and gave the offset of ALG.
    """
    rows = []
    for method, first in seeds[0].items():
        row: dict[str, Any] = {"experiment": name, "method": method, "seeds": len(seeds)}
        if "fallback" in first:
            row["fell back"] = sum(seed[method]["fallback"] is not None for seed in seeds)
        for column in COLUMNS:
            if first[column] is None:
                continue
            values = np.array([seed[method][column] for seed in seeds], dtype=np.float64)
            half = T_975 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) == NUM_SEEDS else float("nan")
            row |= {column: float(values.mean()), f"{column} +-": float(half)}
        rows.append({**row, "samples": [seed[method] for seed in seeds]})
    return rows


class ConvNet(nn.Module):
    """Three convolutions with BatchNorm, two poolings, two linear layers, for digits of 12 x 12 pixels."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.features = nn.Sequential(
            *block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 64), nn.Flatten()
        )
        self.hidden = nn.Linear(576, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if self.training:
            pixel_values = jitter(pixel_values)
        logits = self.classifier(self.hidden(self.features(pixel_values)).relu())
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def jitter(images: Tensor) -> Tensor:
    """A little rotation, scale and translation, other for each image: the only augmentation, in training mode."""
    count, device = len(images), images.device
    angle = (torch.rand(count, device=device) - 0.5) * 0.2
    scale = 1 + (torch.rand(count, device=device) - 0.5) * 0.1
    move = (torch.rand(count, 2, device=device) - 0.5) * 0.16
    top = torch.stack([scale * angle.cos(), -scale * angle.sin(), move[:, 0]], dim=1)
    bottom = torch.stack([scale * angle.sin(), scale * angle.cos(), move[:, 1]], dim=1)
    grid = nn.functional.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="border")


def to_target_domain(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotated by 18 degrees, scaled by 1 / 1.1, contrast 0.55, noise 0.12."""
    angle = torch.tensor(18 * torch.pi / 180)
    turn = 1.1 * torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    grid = nn.functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    turned = nn.functional.grid_sample(images, grid, align_corners=False)
    return turned * 0.55 + 0.25 + 0.12 * torch.randn(images.shape, generator=generator)


def build_digits(seed: int) -> Experiment:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=(12, 12), mode="bilinear", align_corners=False)
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    source_ids, train_ids, test_ids = order[:700], order[700:1250], order[1250:]
    target = to_target_domain(images, generator)
    seen = torch.randperm(10, generator=generator)[:5].tolist()
    set_seed(seed)
    model = ConvNet()
    train_source(model, images[source_ids], labels[source_ids], generator)
    return Experiment(
        source=lambda: copy.deepcopy(model),
        train=Samples(target[train_ids], labels[train_ids]),
        test=Samples(target[test_ids], labels[test_ids]),
        source_test=Samples(images[test_ids], labels[test_ids]),
        partition=ClassPartition(tuple(map(str, range(10))), tuple(seen)),
        seed=seed,
        options={
            "max_steps": 150,
            "per_device_train_batch_size": 64,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.0,
        },
        optimizer=(torch.optim.SGD, {"lr": 3e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    )


def train_source(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """400 steps of SGD on the source domain."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-2, momentum=0.9, weight_decay=5e-4)
    for _ in range(400):
        rows = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        model(images[rows], labels[rows])["loss"].backward()
        optimizer.step()
    model.eval()


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    seeds = [
        run_seed(build_digits(seed), lambda source, tuned: interpolate(source, tuned, 0.5))
        for seed in tqdm(range(1 if quick else NUM_SEEDS), desc="seeds")
    ]
    return summarise(seeds, "digits")


PLOT = None
