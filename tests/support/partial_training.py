"""A PartialTuneTrainer on tiny models, for the tests of partial-tune and the processes that they start."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from partial_tune import ClassPartition, PartialTuneArguments, PartialTuneTrainer
from support.partial_models import NAMES

PARTITION = ClassPartition(NAMES, (0, 2, 3, 5))


def arguments(folder: Path, **options: Any) -> PartialTuneArguments:
    """Four steps of SGD without files and output."""
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return PartialTuneArguments(output_dir=str(folder), **{**defaults, **options})


def make_trainer(
    folder: Path, model: nn.Module, rows: Any, *, source_model: Any = None, eval_dataset: Any = None, **options: Any
) -> PartialTuneTrainer:
    return PartialTuneTrainer(
        model,
        arguments(folder, **options),
        partition=PARTITION,
        source_model=source_model,
        train_dataset=rows,
        eval_dataset=eval_dataset,
    )


def weights_equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are equal, bit for bit."""
    state, reference = one.state_dict(), other.state_dict()
    return state.keys() == reference.keys() and all(torch.equal(state[name], reference[name]) for name in state)
