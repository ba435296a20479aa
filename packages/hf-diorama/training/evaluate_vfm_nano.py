"""Measures the towers `vfm-nano-*` by linear probes on held-out renders, and writes the card of each.

    OMP_NUM_THREADS=1 python packages/hf-diorama/training/evaluate_vfm_nano.py

A probe is logistic regression on frozen features: the class token beside the mean of the patch tokens. Probes learn
from rows of `train` and are measured on `heldout`, which nothing was trained or tuned on.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from provenance import wilson
from torch import nn
from transformers import AutoModel
from vfm_nano import load_rows

import hf_diorama as dio
from hf_diorama.worlds.creatures.taxonomy import build_tree

TRAINED_ON = {
    "supervised": "species and looks of trait parts of `creatures`, colours and shapes of `scenes` (cross-entropy)",
    "contrastive": "which of many views show the same image (SimCLR, arXiv 2002.05709); no label",
    "masked": "pixels of hidden patches (masked autoencoder, arXiv 2111.06377; 60 percent hidden); no label",
    "random": "nothing: the weights that the other three start from",
}
NUM_TRAIN, NUM_TEST = 1_500, 1_000


def load_tasks(split: str, n: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns images and labels of each probe."""
    images, rows = load_rows("creatures", ["species", "habitat", "pose"], split, n)
    species, habitat = torch.tensor(rows["species"][:]), torch.tensor(rows["habitat"][:])
    facing = torch.tensor([pose["facing"] == "right" for pose in rows["pose"]]).long()
    order = {name: i for i, name in enumerate(dict.fromkeys(one.ranks[3] for one in build_tree()))}
    orders = torch.tensor([order[one.ranks[3]] for one in build_tree()])[species]
    scenes, scene_rows = load_rows("scenes", ["objects"], split, n)
    counts = torch.tensor([len(objects) - 1 for objects in scene_rows["objects"]])
    red = torch.tensor([any(item["color_name"] == "red" for item in objects) for objects in scene_rows["objects"]])
    return {
        "species (of 96)": (images, species),
        "order (of 6)": (images, orders),
        "habitat (of 4)": (images, habitat),
        "facing left or right": (images, facing),
        "number of objects (1 to 9)": (scenes, counts),
        "is a red object there": (scenes, red.long()),
    }


@torch.no_grad()
def compute_features(tower, images: torch.Tensor) -> torch.Tensor:
    """Returns the class token beside the mean patch token, (n, 256)."""
    parts = []
    for part in images.split(250):
        tokens = tower(part.float() / 127.5 - 1).last_hidden_state
        parts.append(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1))
    return torch.cat(parts)


def fit_probe(features: torch.Tensor, labels: torch.Tensor) -> nn.Linear:
    """Returns logistic regression, lightly regularised, at its optimum."""
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(probe(features), labels) + 1e-4 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe


def write_card(folder: Path, kind: str, lines: list[str], training: str) -> None:
    folder.joinpath("README.md").write_text(
        f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [synthetic, hf-diorama]
---

# vfm-nano-{kind}

A `ViTModel` (64 pixels, patch 8, width 128, 6 layers, 4 heads, 0.83M parameters, fp16): one of the towers of equal
size that differ in what they were trained for. This one: {TRAINED_ON[kind]}.

## Linear probes

Logistic regression on class token and mean patch token, from {NUM_TRAIN:,} rows of `train`; measured on {NUM_TEST:,}
rows of `heldout`, seed 0, which no training or choice has seen. Majority is the share of the most frequent answer.

| probe | accuracy | 95 percent interval | majority |
|-|-|-|-|
"""
        + "\n".join(lines)
        + f"""

Made by `python packages/hf-diorama/training/evaluate_vfm_nano.py`.

## Training

{training}

## Limits

A test fixture and a subject for claims in miniature, of no use outside the diorama. One seed.
""",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(dio.__file__).parent / "models", help="holds the towers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load_tasks("train", NUM_TRAIN), load_tasks("heldout", NUM_TEST)
    notes = Path(__file__).with_name("vfm_nano_training.md").read_text(encoding="utf-8").split("## ")[1:]
    training = dict(note.split("\n", 1) for note in notes)
    for kind in TRAINED_ON:
        name = f"vfm-nano-{kind}"
        folder = args.models / name
        if not folder.is_dir():
            print(f"{name}: not there, left out")
            continue
        tower = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
        lines, seen = [], {}
        for probe_name, (images, labels) in train.items():
            test_images, truth = test[probe_name]
            if id(images) not in seen:
                features = compute_features(tower, images)
                mean, std = features.mean(0), features.std(0) + 1e-6
                seen[id(images)] = (features - mean) / std, (compute_features(tower, test_images) - mean) / std
            features, test_features = seen[id(images)]
            hits = (fit_probe(features, labels)(test_features).argmax(1) == truth).numpy()
            low, high = wilson(int(hits.sum()), len(hits))
            majority = np.bincount(truth).max() / len(truth)
            lines.append(f"| {probe_name} | {hits.mean():.1%} | {low:.1%} to {high:.1%} | {majority:.1%} |")
        write_card(folder, kind, lines, training[name].strip())
        print(name, *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
