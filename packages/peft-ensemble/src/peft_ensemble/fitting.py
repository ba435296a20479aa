"""Training one member or student, and asking it: the only place where models, processors and data meet."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoImageProcessor, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import tqdm

from .augmentation import View
from .data import ViewCollator
from .members import MemberSpec
from .modeling_classifier import load_classifier
from .storage import save_adapter
from .structure import find_structure
from .trainer import SelfTrainingTrainer

# What in the training arguments decides what a member becomes.
DECISIVE = (
    "adam_beta1 adam_beta2 adam_epsilon bf16 fp16 gradient_accumulation_steps label_smoothing_factor learning_rate "
    "lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps num_train_epochs optim per_device_train_batch_size "
    "warmup_steps weight_decay"
).split()


def describe_training(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that decide what a member becomes, as JSON takes them."""
    values = args.to_dict()
    described: dict[str, Any] = json.loads(json.dumps({key: values[key] for key in DECISIVE}, default=str))
    return described


def build_member(spec: MemberSpec, label_names: Sequence[str]) -> Any:
    """A fresh member: its backbone with a new adapter and a new head, drawn from its seed alone."""
    names = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    base = load_classifier(spec.backbone, len(label_names), spec.pooling, seed=spec.seed, **names)
    method = dataclasses.replace(spec.method)  # peft fills in what it finds; the spec stays as it is
    if method.modules_to_save is None:  # type: ignore[attr-defined]
        # peft's own methods would leave a new head random and frozen.
        method.modules_to_save = [find_structure(base).head]  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return get_peft_model(base, method)


def load_member(spec: MemberSpec, label_names: Sequence[str], folder: Path) -> Any:
    """A trained member, in evaluation mode."""
    base = load_classifier(spec.backbone, len(label_names), spec.pooling, seed=spec.seed)
    return PeftModel.from_pretrained(base, str(folder)).eval().to(PartialState().device)


def load_processor(spec: MemberSpec) -> Any:
    """The image processor of a member's backbone."""
    return AutoImageProcessor.from_pretrained(spec.backbone)


def train(
    spec: MemberSpec,
    label_names: Sequence[str],
    dataset: Dataset,
    args: TrainingArguments,
    folder: Path,
    views: Sequence[View],
    card: str,
) -> dict[str, float]:
    """Trains a member and saves its adapter in the folder; goes on from a checkpoint beside it if there is one.

    Returns:
        The number of steps. (The Trainer's loss is left out: after a resume it is a mean over the last part only.)
    """
    scratch = folder.with_name(folder.name + ".trainer")
    own = dataclasses.replace(
        args,
        output_dir=str(scratch),
        seed=spec.seed,
        data_seed=spec.seed,
        remove_unused_columns=False,
        report_to=[],
        push_to_hub=False,
        save_total_limit=1,
        **spec.training,
    )
    trainer = SelfTrainingTrainer(
        model=build_member(spec, label_names),
        args=own,
        train_dataset=dataset,
        data_collator=ViewCollator(load_processor(spec), views, seed=spec.seed),
    )
    checkpoint = get_last_checkpoint(str(scratch)) if scratch.exists() else None
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), folder, card)
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return {"global_step": float(result.global_step)}


@torch.no_grad()
def predict(
    model: Any, processor: Any, dataset: Dataset, batch_size: int, *, tta: int = 1, seed: int = 0, desc: str = ""
) -> dict[str, torch.Tensor]:
    """Logits and features of all images.

    Args:
        tta: with 1, one clean pass; with more, the mean of the logits of so many weakly augmented passes.

    Returns:
        `logits` `(N, C)` and `features` `(N, D)`, what the head reads, of the last pass, in float32.
    """
    features: list[torch.Tensor] = []
    head = model.get_submodule("base_model.model." + str(find_structure(model.base_model.model).head))
    hook = head.register_forward_pre_hook(lambda module, args: features.append(args[0].float().cpu()))
    device = next(model.parameters()).device
    total: torch.Tensor | None = None
    try:
        for number in range(tta):
            collator = ViewCollator(processor, ("weak" if tta > 1 else "none",), seed=seed, epoch=number)
            features.clear()
            parts = []
            for start in tqdm(range(0, len(dataset), batch_size), desc=desc, leave=False, disable=not desc):
                rows = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
                pixel_values = collator(rows)["pixel_values"].to(device)
                parts.append(model(pixel_values=pixel_values).logits.float().cpu())
            logits = torch.cat(parts) if parts else torch.zeros(0, model.base_model.model.num_labels)
            total = logits if total is None else total + logits
    finally:
        hook.remove()
    assert total is not None
    return {"logits": total / tta, "features": torch.cat(features) if features else torch.zeros(0, 1)}
