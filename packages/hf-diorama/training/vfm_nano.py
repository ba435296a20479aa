"""What the four towers `vfm-nano-*` share: layout, images, moved views, the training run, and what is saved.

All four are `ViTModel`s of one size that start from the same weights; they differ in what they were trained to do.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from provenance import read_commit
from torch import nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTImageProcessorPil, ViTModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

import hf_diorama as dio

SIZE = 64
LAYOUT = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
ROWS = {"creatures": 20_000, "scenes": 12_000}


def build_tower() -> ViTModel:
    """Returns the weights that all four start from; small models learn faster from sine-cosine positions."""
    set_seed(0)
    tower = ViTModel(ViTConfig(**LAYOUT), add_pooling_layer=False)
    tower.set_attn_implementation("eager")  # the fastest for so few tokens
    side, quarter = SIZE // LAYOUT["patch_size"], LAYOUT["hidden_size"] // 4
    waves = torch.outer(torch.arange(side).float(), 10.0 ** -torch.linspace(0, 1.5, quarter))  # (side, quarter)
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    with torch.no_grad():
        tower.embeddings.position_embeddings[0, 1:] = 0.3 * torch.cat([rows, columns], dim=2).flatten(0, 1)
    return tower


def load_rows(world: str, columns: list[str], split: str = "train", n: int | None = None):
    """Returns the first images of a world, (n, 3, 64, 64) bytes, and their rows with these columns."""
    ds = dio.load(world, split=split, n=n or ROWS[world], image_size=SIZE)
    batches = ds.select_columns(["image"]).iter(1_000)
    images = np.concatenate([np.stack([np.asarray(image) for image in batch["image"]]) for batch in batches])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), ds.select_columns(columns)


def move(images: torch.Tensor, smallest: float, jitter: float) -> torch.Tensor:
    """Returns a random view of each image as pixel values in [-1, 1].

    A view is a crop of `smallest` to 1 of each side, mirrored half of the time, whose contrast, brightness and colour
    channels are changed by up to `jitter`.
    """
    n = len(images)
    values = images.float() / 127.5 - 1
    scale = smallest + (1 - smallest) * torch.rand(n)
    shift = (1 - scale)[:, None] * (2 * torch.rand(n, 2) - 1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = scale * (1 - 2 * torch.randint(0, 2, (n,)))
    theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta, list(values.shape), align_corners=False)
    values = nn.functional.grid_sample(values, grid, padding_mode="reflection", align_corners=False)
    gain = 1 + jitter * (2 * torch.rand(n, 3, 1, 1) - 1)
    return (values * gain + 0.5 * jitter * (2 * torch.rand(n, 1, 1, 1) - 1)).clamp(-1, 1)


def parse_args(name: str, steps: int = 0) -> argparse.Namespace:
    """Returns the options that the scripts share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--work-dir", help="checkpoints, to go on from; by default in /tmp, for these steps only")
    parser.add_argument("--out", type=Path, default=Path(dio.__file__).parent / "models" / name)
    args = parser.parse_args()
    # A run of another length has another learning rate at every step: going on from it would be no run of either.
    args.work_dir = args.work_dir or f"/tmp/{name}-{args.steps}-steps"
    return args


def train(args: argparse.Namespace, model: nn.Module, size: int, collate, *, batch_size: int, lr: float) -> None:
    """Trains a model that returns a dictionary with its `loss`, from the last checkpoint if there is one.

    `size` is the number of images; `collate` makes a batch from a list of indices below it.
    """
    training = TrainingArguments(
        output_dir=args.work_dir,
        max_steps=args.steps,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        weight_decay=0.05,
        warmup_steps=150,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        logging_steps=50,
        save_steps=200,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    checkpoint = get_last_checkpoint(args.work_dir) if Path(args.work_dir).is_dir() else None
    trainer = Trainer(model=model, args=training, train_dataset=list(range(size)), data_collator=collate)
    start = time.process_time()
    trainer.train(resume_from_checkpoint=checkpoint)
    minutes = (time.process_time() - start) / 60
    step = trainer.state.global_step
    print(f"{step} steps, {minutes:.1f} CPU minutes in this call, commit {read_commit()}", flush=True)


def save_tower(tower: nn.Module, out: Path) -> None:
    """Writes weights, in half precision, and image processor."""
    plain = ViTModel(ViTConfig(**LAYOUT), add_pooling_layer=False)
    plain.load_state_dict(tower.state_dict())
    plain.half().save_pretrained(out)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(out)
