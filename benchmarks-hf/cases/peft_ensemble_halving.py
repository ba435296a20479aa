"""A grid of 24 candidates: successive halving and shared frozen blocks against 24 separate runs, time and accuracy.

The grid is that of V-PET for one method and backbone (learning rate x drop-path x width x augmentation), on 24 genera
of hf-diorama's creatures from two images each; AdaptFormer in the last three of six blocks of vfm-nano-contrastive.
Separate runs are trained and asked each by itself; `halving=3` keeps one of three in each round. Times are of the
process (training, asking, choosing), not of the wall; accuracies are those of the chosen candidate on test images that
nothing else has seen. A finished run is kept as JSON in the system's temporary directory, so that an interrupted case
goes on.
"""

import functools
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging as transformers_logging

from cases.peft_ensemble_creatures import build_creatures
from few_shot import Task, build_args, labels_of, share
from peft_ensemble import AdaptFormerConfig, MemberSpec, PeftEnsemble, UnsupervisedSelector

SEEDS = 3
KEEP_ONE_OF = 3
BLOCKS = [3, 4, 5]
SEPARATE = "separate runs"
WAYS: dict[str, dict[str, Any]] = {
    "halving, frozen blocks shared": {"halving": KEEP_ONE_OF, "prefix_cache_mib": 256},
    "halving": {"halving": KEEP_ONE_OF, "prefix_cache_mib": 0},
}


def build_grid(task: Task, *, quick: bool) -> list[MemberSpec]:
    search: dict[str, list[Any]] = {
        "learning_rate": [2e-2, 5e-3, 1e-3],
        "drop_path": [0.0, 0.2],
        "bottleneck": [4, 16],
        "augmentation": ["weak", "strong"],
    }
    if quick:
        search = {"learning_rate": search["learning_rate"]}
    return MemberSpec.grid([task.backbones[0]], [AdaptFormerConfig(blocks=BLOCKS)], search, seeds=[task.seed])


def run_grid(specs: list[MemberSpec], task: Task, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds of the process until one of the candidates is chosen, its number, its scores and its test accuracy."""
    args = build_args(num_train_epochs=task.member_epochs, per_device_train_batch_size=task.batch_size)
    begin = time.process_time()
    ensemble = PeftEnsemble(specs, task.label_names, folder)
    ensemble.fit(task.labeled, args, unlabeled_val=task.pool.remove_columns("label"), **options)
    (chosen,) = ensemble.members
    seconds = time.process_time() - begin
    (selection,) = ensemble.selections.values()
    return {
        "cpu_s": seconds,
        "chosen": [spec.id for spec in specs].index(chosen.id),
        "scores": selection.scores[selection.index],
        "accuracy": share(ensemble.predict(task.test).argmax(-1) == labels_of(task.test)),
    }


def run_separately(specs: list[MemberSpec], task: Task, work: Path) -> tuple[dict[str, Any], list[float]]:
    """Candidates that know nothing of each other: their seconds in all, the choice, and the accuracy of each."""
    alone = [
        keep(work / f"{number}.json", functools.partial(run_grid, [spec], task, {"prefix_cache_mib": 0}))
        for number, spec in enumerate(specs)
    ]
    begin = time.process_time()
    chosen = UnsupervisedSelector().select([row["scores"] for row in alone]).index
    seconds = time.process_time() - begin + sum(row["cpu_s"] for row in alone)
    accuracies = [row["accuracy"] for row in alone]
    return {"cpu_s": seconds, "chosen": chosen, "accuracy": accuracies[chosen]}, accuracies


def keep(path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What is in the file, made first if there is none."""
    if not path.exists():
        folder = path.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)  # half a run has no time
        made = make(folder)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(made), encoding="utf-8")
        part.replace(path)
        shutil.rmtree(folder)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def run(*, quick: bool) -> list[dict[str, Any]]:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("peft_ensemble").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    rows = []
    for seed in range(1 if quick else SEEDS):
        work = Path(tempfile.gettempdir()) / f"fovea-halving-{key}{'-quick' if quick else ''}" / str(seed)
        work.mkdir(parents=True, exist_ok=True)
        task = build_creatures(seed, quick=quick)
        specs = build_grid(task, quick=quick)
        separate, accuracies = run_separately(specs, task, work)
        found = {SEPARATE: separate}
        for number, (way, options) in enumerate(WAYS.items()):
            if number == 0 or seed == 0:  # halving by itself once
                path = work / f"way-{number}.json"
                found[way] = keep(path, functools.partial(run_grid, specs, task, options))
        for way, result in found.items():
            row = {"seed": seed, "way": way, **{key: result[key] for key in ("cpu_s", "chosen", "accuracy")}}
            row["ratio"] = separate["cpu_s"] / result["cpu_s"]
            rows.append({**row, "best": max(accuracies), "mean": sum(accuracies) / len(accuracies)})
    return rows
