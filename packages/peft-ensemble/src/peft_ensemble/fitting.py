"""Training one member or student, from its backbone to its adapter folder."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LNTuningConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoImageProcessor, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .augmentation import View
from .data import MixCollator, ViewCollator, with_arrays
from .drop_path import add_drop_path
from .members import MemberSpec
from .modeling_classifier import load_classifier
from .prefix import FeatureCache, FrozenPrefix, PrefixCollator, count_frozen_blocks
from .storage import read_json, save_adapter
from .structure import find_structure
from .trainer import SelfTrainingTrainer
from .tuners.base import VisualConfig

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
    base = load_base(spec, label_names)
    method = place_method(spec.method, base)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.seed)
        model = get_peft_model(base, method)
    if spec.drop_path:
        add_drop_path(model, spec.drop_path, first=count_frozen_blocks(model))
    return model


def load_base(spec: MemberSpec, label_names: Sequence[str]) -> Any:
    """The backbone of a member with a new head, which knows the names of its classes."""
    names = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    return load_classifier(spec.backbone, len(label_names), spec.pooling, seed=spec.seed, **names)


def place_method(method: PeftConfig, model: Any) -> PeftConfig:
    """A copy of the config that is about this model, where it says nothing itself.

    The head is trained and saved: peft's own methods would leave a new one random and frozen. LN-tuning is on the
    norms of all blocks, other methods of peft with `target_modules` on the projections of queries and values.

    Raises:
        ValueError: `target_modules` that are not in the model.
    """
    placed: Any = dataclasses.replace(method)
    structure = find_structure(model)
    if placed.modules_to_save is None and structure.head:
        placed.modules_to_save = [structure.head]
    if isinstance(method, VisualConfig) or not hasattr(method, "target_modules"):
        return placed  # type: ignore[no-any-return]
    if placed.target_modules is None:
        is_norm = isinstance(method, LNTuningConfig)
        places = [block.norms if is_norm else (block.q, block.v) for block in structure.blocks]
        placed.target_modules = {name for names in places for name in names}
    elif not any(check_target_module_exists(placed, name) for name, _ in model.named_modules()):
        has = ", ".join(name.rpartition(".")[2] for name in structure.blocks[0].linears)
        raise ValueError(
            f"expected target_modules of {type(model).__name__}, whose blocks have {has}, got "
            f"{placed.target_modules}; name some of them, or leave target_modules out"
        )
    return placed  # type: ignore[no-any-return]


def load_member(spec: MemberSpec, label_names: Sequence[str], folder: Path) -> Any:
    """A trained member, in evaluation mode."""
    return PeftModel.from_pretrained(load_base(spec, label_names), str(folder)).eval().to(PartialState().device)


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
    *,
    beside: Dataset | None = None,
    cache: FeatureCache | None = None,
    until: float = 1.0,
) -> None:
    """Train a member and save its adapter in the folder; go on from a checkpoint beside it if there is one.

    `metrics.json` has the number of steps. (The Trainer's loss is left out: after a resume it is a mean over the last
    part only.)

    Args:
        beside: labelled images with soft labels, of which each batch gets as many again.
        cache: for features of frozen blocks, which are then computed once for all members; see `prefix`.
        until: with less than 1, stop at this share of the training, with nothing but a checkpoint.
    """
    scratch = scratch_of(folder)
    if until < 1 and _is_trained(scratch, until):
        return
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
    model = build_member(spec, label_names)
    dataset = with_arrays(dataset)
    collator = ViewCollator(load_processor(spec), views, seed=spec.seed)
    if beside is not None:
        collator = MixCollator(collator.processor, views, seed=spec.seed, beside=with_arrays(beside))
    with ExitStack() as stack:
        if cache is not None and (prefix := _find_prefix(model, own, collator, dataset)):
            source = (spec.backbone, spec.pooling, str(prefix.autocast))
            collator = PrefixCollator(
                collator.processor, views, seed=spec.seed, images=dataset, prefix=prefix, cache=cache, source=source
            )
            dataset = dataset.remove_columns("image")
            own.dataloader_num_workers = 0  # the cache is in this process
        trainer = SelfTrainingTrainer(model=model, args=own, train_dataset=dataset, data_collator=collator)
        trainer.remove_callback(PrinterCallback)  # with disable_tqdm it would print a line for each member
        trainer.remove_callback(PrinterCallback)  # prints its summary of each member, also where nothing is logged
        if until < 1:
            trainer.add_callback(_StopCallback(until))
        if isinstance(collator, PrefixCollator):
            stack.enter_context(collator.prefix.skip())
        checkpoint = get_last_checkpoint(str(scratch)) if scratch.exists() else None
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if until == 1 and trainer.is_world_process_zero():
        metrics = {"global_step": float(result.global_step)}
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), folder, card, metrics)
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def scratch_of(folder: Path) -> Path:
    """Where checkpoints of a member are while it is trained."""
    return folder.with_name(folder.name + ".trainer")


def find_checkpoint(folder: Path) -> Path:
    """The adapter of a member that was stopped on the way."""
    return Path(str(get_last_checkpoint(str(scratch_of(folder)))))


def _is_trained(scratch: Path, until: float) -> bool:
    """Whether there is a checkpoint of this share of the training."""
    checkpoint = get_last_checkpoint(str(scratch)) if scratch.exists() else None
    if checkpoint is None:
        return False
    state = read_json(Path(checkpoint) / "trainer_state.json")
    return bool(state["global_step"] >= ceil(until * state["max_steps"]))


def _find_prefix(model: Any, args: TrainingArguments, collator: ViewCollator, dataset: Dataset) -> FrozenPrefix | None:
    """The frozen blocks that training can leave out, if there are some."""
    count = count_frozen_blocks(model)
    if not count or args.torch_compile or args.n_gpu > 1:
        return None
    row = {"image": dataset[0]["image"], "id": ""}
    shape = ViewCollator(collator.processor)([row])["pixel_values"].shape[1:]
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return FrozenPrefix(model, count, tuple(shape), autocast)


class _StopCallback(TrainerCallback):
    """Stops, with a checkpoint, at a share of the training."""

    def __init__(self, until: float):
        self.until = until

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop behind the last step of this part."""
        if state.global_step >= ceil(self.until * state.max_steps):
            control.should_save = control.should_training_stop = True
