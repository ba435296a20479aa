"""The training loop of LOLSGD: in each round local training, one worker after the other, then the average."""

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from partial_tune.functional import NO_FLOAT64
from partial_tune.lolsgd import ModelAverage, derive_seed, draw_batches, draw_classes, named_state

if TYPE_CHECKING:
    from partial_tune.trainer import PartialTuneTrainer


def run_lolsgd(
    trainer: "PartialTuneTrainer", resume_from_checkpoint: str | None, ignore_keys_for_eval: list[str] | None
) -> TrainOutput:
    """Trains with leave-out local SGD, and returns what `Trainer.train` returns.

    Every process runs the workers whose number is its own modulo the number of processes, on a model of its own; what
    a worker does depends on seed, round and worker only. A step of the trainer is a step of one worker; logs,
    evaluation and checkpoints come at the end of a round.
    """
    args = trainer.args
    labels = trainer._train_labels
    if labels is None:
        raise ValueError("Expected a `train_dataset` with a length for LOLSGD, got none or a stream.")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.n_gpu > 1:
        raise ValueError("Expected one whole model in each process for LOLSGD; start one process for each device.")
    if args.device.type in NO_FLOAT64:
        raise ValueError(f"Expected a device with float64, in which LOLSGD averages, got {args.device}; use the CPU.")
    steps = args.max_steps
    if steps <= 0:
        per_epoch = math.ceil(len(labels) / (args.per_device_train_batch_size * args.gradient_accumulation_steps))
        steps = math.ceil(args.num_train_epochs * per_epoch)
    local_steps = math.ceil(steps / args.rounds)
    trainer.accelerator.free_memory()
    first_round, _ = trainer._init_training_state(
        local_steps * args.rounds, local_steps, args.rounds, resume_from_checkpoint, None
    )
    if trainer.state.global_step % local_steps:
        raise ValueError(
            f"Expected a checkpoint of the end of a round ({local_steps} steps), got step {trainer.state.global_step}."
        )
    model = prepare(trainer, local_steps * args.rounds)
    start, losses = time.time(), []
    trainer._tr_loss = torch.tensor(0.0, device=args.device)
    trainer._total_loss_scalar = 0.0
    trainer._initial_global_step = trainer._globalstep_last_logged = trainer.state.global_step
    trainer.control = trainer.callback_handler.on_train_begin(args, trainer.state, trainer.control)
    for round_id in range(first_round, args.rounds):
        trainer.control = trainer.callback_handler.on_epoch_begin(args, trainer.state, trainer.control)
        losses.append(run_round(trainer, model, labels, round_id, local_steps))
        end_round(trainer, model, round_id, local_steps, losses[-1], ignore_keys_for_eval, start)
        if trainer.control.should_training_stop:
            break
    trainer.state.epoch = float(args.num_train_epochs)
    trainer._worker_step = None
    output: TrainOutput = trainer._finalize_training(  # type: ignore[no-untyped-call]
        None, steps * args.per_device_train_batch_size, start
    )
    return output


def prepare(trainer: "PartialTuneTrainer", total_steps: int) -> nn.Module:
    """Places the model, without DDP, and makes optimizer and schedule; returns the model to train."""
    if trainer._created_lr_scheduler:
        trainer.lr_scheduler, trainer._created_lr_scheduler = None, False
    model: nn.Module = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
    trainer.create_optimizer_and_scheduler(num_training_steps=total_steps)
    if not isinstance(trainer.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ValueError(
            "Expected a learning rate that depends on the step alone (linear, cosine, constant, ...) for LOLSGD, got "
            f"{type(trainer.lr_scheduler).__name__}."
        )
    trainer.model_wrapped = model
    for name in ("model", "optimizer", "lr_scheduler"):
        setattr(trainer.callback_handler, name, getattr(trainer, name))
    trainer.callback_handler.train_dataloader = build_loader(trainer, None)
    return model


def run_round(
    trainer: "PartialTuneTrainer", model: nn.Module, labels: np.ndarray, round_id: int, local_steps: int
) -> Tensor:
    """Trains the workers of this process from the same weights, loads the average of all, returns the mean loss."""
    args, accelerator = trainer.args, trainer.accelerator
    base = {name: value.detach().clone() for name, value in named_state(model).items()}
    average = ModelAverage(model, args.workers, args.lora_average)
    total = torch.zeros((), device=args.device, dtype=torch.float64)
    for worker in range(accelerator.process_index, args.workers, accelerator.num_processes):
        with torch.no_grad():
            for name, value in named_state(model).items():
                value.copy_(base[name])
        total += run_worker(trainer, model, labels, round_id, worker, local_steps)
        average.add(worker)
    average.reduce(accelerator)
    average.load()
    mean: Tensor = accelerator.reduce(total, reduction="sum") / args.workers
    return mean


def run_worker(
    trainer: "PartialTuneTrainer", model: nn.Module, labels: np.ndarray, round_id: int, worker: int, local_steps: int
) -> Tensor:
    """Takes the local steps of one worker in one round, with fresh optimizer state; returns the mean loss.

    Seeds the global generators, which dropout and augmentation draw from, as `Trainer` does at its start.
    """
    args = trainer.args
    where = {"seed": args.seed, "round_id": round_id, "worker": worker}
    classes = draw_classes(trainer.partition.seen, trainer._drop, **where)
    count = local_steps * args.gradient_accumulation_steps
    batches = draw_batches(labels, classes, count, args.per_device_train_batch_size, **where)
    set_seed(derive_seed(args.seed, round_id, worker, 2) % 2**32)
    loader = iter(build_loader(trainer, batches))
    optimizer = trainer.optimizer
    assert optimizer is not None  # made by `prepare`
    optimizer.state.clear()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    total = torch.zeros((), device=args.device, dtype=torch.float64)
    for step in range(local_steps):
        trainer._worker_step = round_id * local_steps + step
        set_learning_rate(trainer, trainer._worker_step)
        for _ in range(args.gradient_accumulation_steps):
            total += trainer.training_step(model, next(loader)).double()
        if args.max_grad_norm > 0:
            trainer._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        optimizer.step()
        model.zero_grad()
    return total / local_steps


def set_learning_rate(trainer: "PartialTuneTrainer", step: int) -> None:
    """Sets the learning rate of a worker's step: one schedule over all rounds, the same for all workers."""
    schedule, optimizer = trainer.lr_scheduler, trainer.optimizer
    assert schedule is not None  # made by `prepare`
    assert optimizer is not None
    rates = [base * scale(step) for base, scale in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule.last_epoch, schedule._last_lr = step, rates


def build_loader(trainer: "PartialTuneTrainer", batches: list[list[int]] | None) -> DataLoader[Any]:
    """Returns a loader of these batches of sample ids, or of all samples in order, as `Trainer` would read them."""
    import datasets

    args, collator = trainer.args, trainer.data_collator
    dataset: Any = trainer.train_dataset
    if isinstance(dataset, datasets.Dataset):
        dataset = trainer._remove_unused_columns(dataset, description="training")
    else:
        collator = trainer._get_collator_with_removed_columns(collator, description="training")
    sampling: dict[str, Any] = (
        {"batch_sampler": batches} if batches else {"batch_size": args.per_device_train_batch_size}
    )
    return DataLoader(dataset, collate_fn=collator, num_workers=args.dataloader_num_workers, **sampling)


def end_round(
    trainer: "PartialTuneTrainer",
    model: nn.Module,
    round_id: int,
    local_steps: int,
    loss: Tensor,
    ignore_keys_for_eval: list[str] | None,
    start: float,
) -> None:
    """Moves the trainer's clock, and logs, evaluates and saves what is due since the last round."""
    state, args = trainer.state, trainer.args
    before, state.global_step = state.global_step, (round_id + 1) * local_steps
    state.epoch = args.num_train_epochs * (round_id + 1) / args.rounds
    trainer._tr_loss += loss.to(trainer._tr_loss.dtype) * local_steps
    trainer.control = trainer.callback_handler.on_step_end(args, state, trainer.control)
    for name in ("logging", "eval", "save"):
        every = getattr(state, f"{name}_steps", 0)
        if getattr(args, f"{name}_strategy") == "steps" and every and state.global_step // every > before // every:
            attribute = {"logging": "should_log", "eval": "should_evaluate", "save": "should_save"}[name]
            setattr(trainer.control, attribute, True)
    trainer.control = trainer.callback_handler.on_epoch_end(args, state, trainer.control)
    trainer._maybe_log_save_evaluate(trainer._tr_loss, None, model, None, state.epoch, ignore_keys_for_eval, start)
