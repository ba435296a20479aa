"""Trains `vit-nano`, a ViT that tells the 96 species of `creatures` apart, on one CPU thread.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/train_vit_nano.py

Run the same command again to go on from the last checkpoint. `evaluate_vit_nano.py` measures what comes out.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import get_last_checkpoint

import hf_diorama as dio
from hf_diorama.worlds.creatures.taxonomy import TRAITS, build_tree

SIZE = 64


class ViTWithTraits(ViTForImageClassification):
    """A classifier with a second head that names the look of each trait part; it is dropped after training."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        tree = build_tree()
        looks = [sorted({species.traits[part] for species in tree}) for part in range(len(TRAITS))]
        self.sizes = [len(options) for options in looks]
        table = [[looks[part].index(trait) for part, trait in enumerate(species.traits)] for species in tree]
        self.register_buffer("table", torch.tensor(table))
        self.traits = nn.Linear(config.hidden_size, sum(self.sizes))
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        output = super().forward(pixel_values, output_hidden_states=True, **kwargs)
        if labels is not None:
            smoothing = 0.1 if self.training else 0.0
            loss = nn.functional.cross_entropy(output.logits, labels, label_smoothing=smoothing)
            if self.training:
                pooled = self.vit.layernorm(output.hidden_states[-1][:, 0])
                for part, logits in enumerate(self.traits(pooled).split(self.sizes, dim=1)):
                    loss = loss + 0.3 * nn.functional.cross_entropy(logits, self.table[labels, part])
            return ImageClassifierOutput(loss=loss, logits=output.logits)
        return output


def build_model() -> ViTWithTraits:
    """Returns the untrained model, with sine-cosine positions, which small models learn faster from."""
    names = [species.name for species in build_tree()]
    config = ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = ViTWithTraits(config)
    side, quarter = SIZE // config.patch_size, config.hidden_size // 4
    waves = torch.outer(torch.arange(side).float(), 10.0 ** -torch.linspace(0, 1.5, quarter))  # (side, quarter)
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], dim=2).flatten(0, 1)  # (num_patches, hidden_size)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[0, 1:] = 0.3 * grid
    return model


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--renders", type=int, default=32_000)
    parser.add_argument("--work-dir", default="/tmp/vit-nano", help="checkpoints, to go on from")
    parser.add_argument("--out", type=Path, default=Path(dio.__file__).parent / "models" / "vit-nano")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    train = dio.load("creatures", split="train", n=args.renders, image_size=SIZE).select_columns(["image", "label"])
    check = dio.load("creatures", split="validation", n=500, image_size=SIZE).select_columns(["image", "label"])
    training = TrainingArguments(
        output_dir=args.work_dir,
        max_steps=args.steps,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=100,
        learning_rate=1.5e-3,
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
    checkpoint = get_last_checkpoint(args.work_dir) if Path(args.work_dir).is_dir() else None
    # A checkpoint has the names of weights of older ViTs, which `from_pretrained` translates and `Trainer` does not.
    model = build_model() if checkpoint is None else ViTWithTraits.from_pretrained(checkpoint)
    model.set_attn_implementation("eager")
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train.with_transform(to_moved_arrays),
        eval_dataset=check.with_transform(to_arrays),
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())},
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(f"{args.work_dir}/final")
    model = ViTForImageClassification.from_pretrained(f"{args.work_dir}/final", dtype=torch.float16)
    model.save_pretrained(args.out)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(args.out)


if __name__ == "__main__":
    main()
