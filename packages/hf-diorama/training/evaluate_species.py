"""Measures a small classifier of `creatures` on held-out renders, which nothing was trained or tuned on.

OMP_NUM_THREADS=1 python packages/hf-diorama/training/evaluate_species.py vit-nano
OMP_NUM_THREADS=1 python packages/hf-diorama/training/evaluate_species.py convnet-nano
"""

import argparse

import numpy as np
import torch
from provenance import wilson
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_diorama as dio
from hf_diorama.worlds.creatures.taxonomy import build_tree


def predict(model, processor, images) -> np.ndarray:
    """Returns the class label that the model gives each image."""
    with torch.inference_mode():
        return model(**processor(images, return_tensors="pt")).logits.argmax(1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name of a shipped model, or a folder")
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--n", type=int, default=5_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = dio.model_path(args.model) if args.model in dio.list_models() else args.model
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32).eval()
    ds = dio.load("creatures", split=args.split, n=args.n, image_size=64)
    guesses = np.concatenate([predict(model, processor, batch["image"]) for batch in ds.iter(100)])
    truth, tree = np.array(ds["label"]), build_tree()
    sisters = guesses == (truth ^ 1)
    lines = {f"species (of {len(tree)})": guesses == truth}
    for depth, rank in ((6, "genus"), (5, "family"), (4, "order")):
        name = np.array([" ".join(species.ranks[:depth]) for species in tree])
        lines[f"{rank} (of {len(set(name))})"] = name[guesses] == name[truth]
    occluded = np.array(ds["occluded"])
    lines["species, no leaves in front"] = (guesses == truth)[~occluded]
    lines["species, leaves in front"] = (guesses == truth)[occluded]
    print(f"Split {args.split}, seed 0, 64 pixels:\n\n| | accuracy | 95 percent interval | n |\n|-|-|-|-|")
    for name, hits in lines.items():
        low, high = wilson(int(hits.sum()), len(hits))
        print(f"| {name} | {hits.mean():.1%} | {low:.1%} to {high:.1%} | {len(hits)} |")
    wrong = (guesses != truth).sum()
    print(f"\nOf {wrong} errors, {sisters.sum()} are the sister species.")


if __name__ == "__main__":
    main()
