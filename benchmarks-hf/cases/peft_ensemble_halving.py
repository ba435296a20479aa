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
WAYS = {
    "separate runs": {"halving": None, "prefix_cache_mib": 0},
    "frozen blocks shared": {"halving": None, "prefix_cache_mib": 256},
    "halving": {"halving": KEEP_ONE_OF, "prefix_cache_mib": 0},
    "halving, frozen blocks shared": {"halving": KEEP_ONE_OF, "prefix_cache_mib": 256},
}
BASELINE, OURS = "separate runs", "halving, frozen blocks shared"


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


def run_separately(
    specs: list[MemberSpec], task: Task, args: Any, folder: Path
) -> tuple[MemberSpec, list[PeftEnsemble]]:
    """The choice among candidates that know nothing of each other, and one ensemble for each."""
    pool = task.pool.remove_columns("label")
    selector, scores, ensembles = UnsupervisedSelector(), [], []
    for spec in specs:
        alone = PeftEnsemble([spec], task.label_names, folder / spec.id)
        ensembles.append(alone.fit(task.labeled, args, unlabeled_val=pool, prefix_cache_mib=0))
        scores.append(alone.selections[spec.group].scores[0])
    return specs[selector.select(scores).index], ensembles


def run_way(way: str, task: Task, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Seconds of the process, and test accuracy of what was chosen."""
    specs = build_grid(task, quick=quick)
    args = build_args(num_train_epochs=task.member_epochs, per_device_train_batch_size=task.batch_size)
    begin = time.process_time()
    if way == BASELINE:
        chosen, ensembles = run_separately(specs, task, args, folder)
    else:
        together = PeftEnsemble(specs, task.label_names, folder)
        together.fit(task.labeled, args, unlabeled_val=task.pool.remove_columns("label"), **WAYS[way])
        (chosen,) = together.members
        ensembles = [together]
    seconds = time.process_time() - begin
    labels = labels_of(task.test)
    accuracies = [share(ensemble.predict(task.test).argmax(-1) == labels) for ensemble in ensembles]
    number = [spec.id for spec in specs].index(chosen.id)
    result = {"cpu_s": seconds, "chosen": number, "accuracy": accuracies[number if way == BASELINE else 0]}
    return result | ({"all": accuracies} if way == BASELINE else {})


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
    sources = [Path(__file__), Path(__file__).with_name("peft_ensemble_creatures.py")]
    key = hashlib.sha256("".join(path.read_text(encoding="utf-8") for path in sources).encode()).hexdigest()[:8]
    work = Path(tempfile.gettempdir()) / f"fovea-halving-{key}{'-quick' if quick else ''}"
    work.mkdir(exist_ok=True)
    rows = []
    for seed in range(1 if quick else SEEDS):
        task = build_creatures(seed, quick=quick)
        ways = WAYS if seed == 0 else {BASELINE: WAYS[BASELINE], OURS: WAYS[OURS]}  # the parts by themselves once
        found = {
            way: keep(work / f"{seed}-{number}.json", functools.partial(run_way, way, task, quick=quick))
            for number, way in enumerate(ways)
        }
        every = found[BASELINE].pop("all")
        for way, result in found.items():
            row = {"seed": seed, "way": way, **result, "ratio": found[BASELINE]["cpu_s"] / result["cpu_s"]}
            rows.append({**row, "best": max(every), "mean": sum(every) / len(every)})
    return rows
