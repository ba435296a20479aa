"""The study's table (arXiv 2409.16434): methods against tasks, tuned on train and validation, tested once.

    python benchmarks-hf/vtab.py --backbone google/vit-base-patch16-224-in21k --tasks tasks.yaml --out vtab-1k
    python benchmarks-hf/vtab.py --backbone FOLDER --tasks tasks.yaml --out DIR --methods linear lora ssf --epochs 20

The file of tasks is a list; `train` and `test` are a folder with one folder for each class, a Parquet file, or
arguments of `datasets.load_dataset`, so that Hub ids work, with the columns `image` and `label`:

    - {name: DTD, group: Natural, train: {path: some/dtd, split: train}, test: {path: some/dtd, split: test}}
    - {name: mine, group: Specialized, train: my-folder/train, test: my-folder/test}

For each method and task: learning rates (and the method's own grid with `--grid study`) are compared on a fifth of the
training images, the best is trained again on all of them, and the test images are looked at once, after the last
epoch. A cell is written as soon as it is done, and not computed again. Images are resized and normalised as the
backbone's processor says, where the study does not normalise; there is no augmentation, as in the study.
"""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from datasets import Dataset
from peft import LNTuningConfig, PeftConfig, get_peft_model
from transformers import AutoImageProcessor, TrainingArguments
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import tqdm

from peft_ensemble import (
    AdaptFormerConfig,
    BitFitConfig,
    ConvPassConfig,
    DiffFitConfig,
    FacTConfig,
    HoulsbyConfig,
    PfeifferConfig,
    RepAdapterConfig,
    SelfTrainingTrainer,
    SharedLoraConfig,
    SSFConfig,
    ViewCollator,
    VPTConfig,
    find_structure,
    load_classifier,
)
from peft_ensemble.configuration_file import load_images
from peft_ensemble.data import with_ids

GROUPS = ("Natural", "Specialized", "Structured")
# A method: its config, and the grid of the study beside learning rate and weight decay.
METHODS: dict[str, tuple[PeftConfig | None, dict[str, list[Any]]]] = {
    "linear": (None, {}),
    "full": (None, {}),
    "bitfit": (BitFitConfig(), {}),
    "ln": (LNTuningConfig(), {}),
    "difffit": (DiffFitConfig(), {}),
    "ssf": (SSFConfig(), {}),
    "vpt-shallow": (VPTConfig(deep=False), {"num_prompts": [5, 10, 50, 100, 200]}),
    "vpt-deep": (VPTConfig(deep=True), {"num_prompts": [5, 10, 50, 100]}),
    "lora": (SharedLoraConfig(), {"r": [1, 8, 16, 32]}),
    "adaptformer": (AdaptFormerConfig(), {"bottleneck": [4, 16, 32], "scale": [0.05, 0.1, 0.2]}),
    "pfeiffer": (PfeifferConfig(), {"bottleneck": [4, 8, 16, 32, 64], "scale": [0.01, 0.1, 1.0, 10.0]}),
    "houlsby": (HoulsbyConfig(), {"bottleneck": [4, 8, 16, 32], "scale": [0.01, 0.1, 1.0, 10.0]}),
    "repadapter": (RepAdapterConfig(), {"bottleneck": [8, 16, 32], "scale": [0.1, 0.5, 1.0, 5.0, 10.0]}),
    "convpass": (ConvPassConfig(), {"bottleneck": [8, 16], "scale": [0.01, 0.1, 1.0, 10.0, 100.0]}),
    "fact-tt": (FacTConfig(decomposition="tt"), {"r": [8, 16, 32], "scale": [0.01, 0.1, 1.0, 10.0, 100.0]}),
    "fact-tk": (FacTConfig(decomposition="tk"), {"r": [16, 32, 64], "scale": [0.01, 0.1, 1.0, 10.0, 100.0]}),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One column of the table."""

    name: str
    group: str
    train: Dataset
    test: Dataset
    num_labels: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How everything is trained; the defaults are the study's.

    Args:
        learning_rates, weight_decays: the grid that all methods share.
        study_grid: whether a method's own grid is searched too, or its defaults are taken.
        pooling: as for `load_classifier`.
    """

    learning_rates: Sequence[float] = (1e-3, 1e-2)
    weight_decays: Sequence[float] = (1e-4, 1e-3)
    study_grid: bool = False
    epochs: int = 100
    batch_size: int = 64
    pooling: str = "cls"
    seed: int = 42

    def candidates(self, method: str) -> list[dict[str, Any]]:
        """All combinations of the grid."""
        grid = {"learning_rate": self.learning_rates, "weight_decay": self.weight_decays}
        grid |= METHODS[method][1] if self.study_grid else {}
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def build_task(name: str, group: str, train: Dataset, test: Dataset) -> Task:
    """A task from its two sets, checked.

    Raises:
        ValueError: an unknown group, or labels that do not count from 0.
    """
    if group not in GROUPS:
        raise ValueError(f"{name}: group must be one of {', '.join(GROUPS)}, got {group!r}")
    labels = sorted(set(train["label"]) | set(test["label"]))
    if labels[0] < 0 or labels[-1] + 1 > 10 * len(labels):
        raise ValueError(f"{name}: expected labels that count from 0, got {labels[:5]} ... {labels[-1]}")
    columns = ["image", "label", "id"]
    ready = [with_ids(dataset).select_columns(columns) for dataset in (train, test)]
    return Task(name=name, group=group, train=ready[0], test=ready[1], num_labels=labels[-1] + 1)


def build_model(backbone: str, method: str, values: Mapping[str, Any], num_labels: int, recipe: Recipe) -> Any:
    """A fresh model of a method, its head new."""
    base = load_classifier(backbone, num_labels, recipe.pooling, seed=recipe.seed, dtype=torch.float32)  # type: ignore[arg-type]
    structure = find_structure(base)
    config = METHODS[method][0]
    if config is None:
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(method == "full" or name.startswith(f"{structure.head}."))
        return base
    own = {key: value for key, value in values.items() if hasattr(config, key)}
    config = replace(config, **own, modules_to_save=[structure.head])  # type: ignore[call-arg]
    if method == "ln":
        norms = [name for block in structure.blocks for name in (block.ln1, block.ln2)]
        config.target_modules = [*norms, *structure.outer_norms()]  # type: ignore[attr-defined]
    torch.manual_seed(recipe.seed)
    return get_peft_model(base, config)


def count_parameters(model: Any) -> int:
    """How many parameters are trained, the head left out."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return sum(value.numel() for name, value in trained.items() if "classifier" not in name)


@torch.no_grad()
def measure(model: Any, processor: Any, dataset: Dataset) -> float:
    """The accuracy on a set."""
    collator, right = ViewCollator(processor), 0
    device = next(model.parameters()).device
    for start in range(0, len(dataset), 64):
        batch = collator([dataset[index] for index in range(start, min(start + 64, len(dataset)))])
        predicted = model(pixel_values=batch["pixel_values"].to(device)).logits.argmax(-1).cpu()
        right += int((predicted == batch["labels"]).sum())
    return right / len(dataset)


def train_and_measure(
    backbone: str, method: str, values: Mapping[str, Any], task: Task, recipe: Recipe, train: Dataset, test: Dataset
) -> tuple[float, int]:
    """The accuracy on one set after training on another, at the last epoch, and the number of parameters."""
    model = build_model(backbone, method, values, task.num_labels, recipe)
    processor = AutoImageProcessor.from_pretrained(backbone)
    args = TrainingArguments(
        output_dir="unused", num_train_epochs=recipe.epochs, per_device_train_batch_size=recipe.batch_size,
        learning_rate=values["learning_rate"], weight_decay=values["weight_decay"], lr_scheduler_type="cosine",
        warmup_steps=0.1, seed=recipe.seed, remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
        save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = SelfTrainingTrainer(model=model, args=args, train_dataset=train, data_collator=ViewCollator(processor))
    trainer.train()
    return measure(model.eval(), processor, test), count_parameters(model)


def run_cell(backbone: str, method: str, task: Task, recipe: Recipe) -> dict[str, Any]:
    """One cell of the table: tuned on four fifths against one, trained again on all, tested once."""
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    border = len(order) * 4 // 5
    fit, val = task.train.select(order[:border]), task.train.select(order[border:])
    candidates = recipe.candidates(method)
    scores = [train_and_measure(backbone, method, values, task, recipe, fit, val)[0] for values in candidates]
    chosen = candidates[scores.index(max(scores))]
    accuracy, parameters = train_and_measure(backbone, method, chosen, task, recipe, task.train, task.test)
    return {
        "task": task.name, "group": task.group, "method": method, "accuracy": accuracy, "parameters": parameters,
        "validation": max(scores), "chosen": chosen, "candidates": len(candidates), "train": len(task.train),
        "test": len(task.test),
    }  # fmt: skip


def run_table(
    backbone: str, tasks: Sequence[Task], methods: Sequence[str], recipe: Recipe, out: Path
) -> list[dict[str, Any]]:
    """All cells, row by row; those in the folder are read."""
    cells = []
    for method, task in tqdm(list(itertools.product(methods, tasks)), desc="cells"):
        path = out / f"{method}-{task.name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(run_cell(backbone, method, task, recipe), indent=1), encoding="utf-8")
            part.replace(path)
        cells.append(json.loads(path.read_text(encoding="utf-8")))
    return cells


def format_table(cells: Iterable[Mapping[str, Any]]) -> str:
    """The table as the study prints it, in Markdown: a column for each task, the mean of each group, the mean of these
    means, and millions of trained parameters without the head. The best of each column is bold.
    """
    cells = list(cells)
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    tasks = sorted({(GROUPS.index(cell["group"]), cell["task"]) for cell in cells})
    found = {(cell["method"], cell["task"]): cell for cell in cells}
    rows: dict[str, list[float]] = {}
    for method in methods:
        values = [100 * found[method, task]["accuracy"] for _, task in tasks]
        groups = sorted({group for group, _ in tasks})
        means = [_mean([v for v, (g, _) in zip(values, tasks, strict=True) if g == group]) for group in groups]
        rows[method] = [*values, *means, _mean(means)]
    best = [max(column) for column in zip(*rows.values(), strict=True)]
    heads = [task for _, task in tasks] + [GROUPS[g] for g in sorted({g for g, _ in tasks})] + ["mean of groups"]
    lines = ["| method | " + " | ".join([*heads, "params (M)"]) + " |", "|---|" + "---|" * (len(heads) + 1)]
    for method, values in rows.items():
        shown = [f"**{v:.1f}**" if v == top else f"{v:.1f}" for v, top in zip(values, best, strict=True)]
        millions = max(found[method, task]["parameters"] for _, task in tasks) / 1e6
        lines.append(f"| {method} | " + " | ".join([*shown, f"{millions:.3f}"]) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def be_quiet() -> None:
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("peft_ensemble").setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="a local folder or a Hub id")
    parser.add_argument("--tasks", required=True, type=Path, metavar="TASKS.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="cells as JSON, and table.md")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--grid", choices=("small", "study"), default="small", help="study: the method's own grid too")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--pooling", choices=("cls", "native"), default="cls")
    args = parser.parse_args()
    be_quiet()
    try:
        rows = yaml.safe_load(args.tasks.read_text(encoding="utf-8"))
        tasks = [
            build_task(row["name"], row["group"], load_images(row["train"]), load_images(row["test"])) for row in rows
        ]
    except (KeyError, TypeError, OSError, ValueError) as error:
        sys.exit(f"vtab.py: {args.tasks}: {error!s}; see --help for its form")
    recipe = Recipe(study_grid=args.grid == "study", epochs=args.epochs, pooling=args.pooling)
    table = format_table(run_table(args.backbone, tasks, args.methods, recipe, args.out))
    (args.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
