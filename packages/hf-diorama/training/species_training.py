"""What the small classifiers of `creatures` share: labels, a head that helps in training, data and the run."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import read_commit
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments, ViTImageProcessorPil, set_seed
from transformers.trainer_utils import get_last_checkpoint

import hf_diorama as dio
from hf_diorama.worlds.creatures.taxonomy import TRAITS, build_tree

SIZE = 64


class TraitHead(nn.Module):
    """Names the look of each trait part from pooled features; it is dropped after training."""

    def __init__(self, hidden_size: int):
        super().__init__()
        tree = build_tree()
        looks = [sorted({species.traits[part] for species in tree}) for part in range(len(TRAITS))]
        self.sizes = [len(options) for options in looks]
        table = [[looks[part].index(trait) for part, trait in enumerate(species.traits)] for species in tree]
        self.register_buffer("table", torch.tensor(table))
        self.linear = nn.Linear(hidden_size, sum(self.sizes))

    def forward(self, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the cross-entropies of all parts."""
        parts = self.linear(pooled).split(self.sizes, dim=1)
        return sum(nn.functional.cross_entropy(part, self.table[labels, i]) for i, part in enumerate(parts))


def species_loss(model: Any, logits: torch.Tensor, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy over species, smoothed and with that of `model.traits` in training."""
    if not model.training:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1) + 0.3 * model.traits(pooled, labels)


def label_names() -> dict[str, dict]:
    """Returns `id2label` and `label2id` for a configuration."""
    names = [species.name for species in build_tree()]
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def to_arrays(batch):
    """Returns pixel values as the image processor makes them."""
    values = np.stack([np.asarray(image) for image in batch["image"]]).transpose(0, 3, 1, 2)
    return {"pixel_values": list(torch.from_numpy(values.astype(np.float32) / 127.5 - 1)), "labels": batch["label"]}


def to_moved_arrays(batch):
    """Returns pixel values moved by up to 3 pixels and maybe mirrored."""
    batch = to_arrays(batch)
    for i, values in enumerate(batch["pixel_values"]):
        dx, dy = torch.randint(0, 7, (2,)).tolist()
        moved = nn.functional.pad(values[None], (3, 3, 3, 3), mode="replicate")[0, :, dy : dy + SIZE, dx : dx + SIZE]
        batch["pixel_values"][i] = moved.flip(2) if torch.rand(()) < 0.5 else moved
    return batch


def train(
    name: str,
    build_model: Callable[[], PreTrainedModel],
    shipped_class: type[PreTrainedModel],
    *,
    learning_rate: float,
    prepare: Callable[[PreTrainedModel], object],
) -> Path:
    """Trains, goes on from the last checkpoint if there is one, saves the model, and returns its folder.

    Args:
        name: folder of the model.
        build_model: makes the untrained model, whose class may have parts for training only.
        shipped_class: class without these parts.
        learning_rate: peak, for 128 images a step.
        prepare: sets the attention or the memory format, in place.
    """
    parser = argparse.ArgumentParser(description=f"Trains {name}; run it again to go on.")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--renders", type=int, default=32_000)
    parser.add_argument("--work-dir", help="checkpoints, to go on from; by default in /tmp, for these options only")
    parser.add_argument("--out", type=Path, default=Path(dio.__file__).parent / "models" / name)
    args = parser.parse_args()
    # A run of another length has another learning rate at every step: going on from it would be no run of either.
    work_dir = args.work_dir or f"/tmp/{name}-{args.steps}-steps-{args.renders}-renders"
    torch.set_num_threads(1)
    set_seed(0)
    rows = dio.load("creatures", split="train", n=args.renders, image_size=SIZE).select_columns(["image", "label"])
    check = dio.load("creatures", split="validation", n=500, image_size=SIZE).select_columns(["image", "label"])
    training = TrainingArguments(
        output_dir=work_dir,
        max_steps=args.steps,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=100,
        learning_rate=learning_rate,
        weight_decay=0.05,
        warmup_steps=200,
        lr_scheduler_type="cosine",
        bf16=True,
        use_cpu=True,
        logging_steps=50,
        eval_strategy="steps",
        eval_steps=250,
        save_steps=250,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to="none",
    )
    checkpoint = get_last_checkpoint(work_dir) if Path(work_dir).is_dir() else None
    model = build_model()
    # A checkpoint may have older names of weights, which `from_pretrained` translates and `Trainer` does not.
    model = model if checkpoint is None else type(model).from_pretrained(checkpoint)
    prepare(model)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=rows.with_transform(to_moved_arrays),
        eval_dataset=check.with_transform(to_arrays),
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())},
    )
    start = time.process_time()
    trainer.train(resume_from_checkpoint=checkpoint)
    minutes = (time.process_time() - start) / 60
    print(f"{args.steps} steps, {minutes:.1f} CPU minutes in this call, commit {read_commit()}", flush=True)
    trainer.save_model(f"{work_dir}/final")
    model = shipped_class.from_pretrained(f"{work_dir}/final", dtype=torch.float16)
    model.save_pretrained(args.out)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(args.out)
    return args.out
