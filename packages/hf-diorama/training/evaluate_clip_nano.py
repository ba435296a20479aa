"""Measures `clip-nano` on held-out renders of `creatures`, which nothing was trained or tuned on.

OMP_NUM_THREADS=1 python packages/hf-diorama/training/evaluate_clip_nano.py
"""

import argparse

import numpy as np
import torch
from provenance import wilson
from train_clip_nano import taxa
from transformers import CLIPModel, CLIPProcessor

import hf_diorama as dio
from taxaclip import RANKS, FewShotClassifier, TaxonClassifier, TaxonIndex
from taxaclip.images import embed_images

SHOTS = 5


def embed(model: CLIPModel, processor: CLIPProcessor, rows) -> torch.Tensor:
    """Returns the normalised embeddings of the rows' images."""
    return torch.cat([embed_images(model, processor, batch["image"]) for batch in rows.iter(100)])


def name_by_few(model: CLIPModel, processor: CLIPProcessor, embeds: torch.Tensor) -> np.ndarray:
    """Returns the labels by the nearest mean of five other images of each species."""
    support = dio.load("creatures", split="train", n=2_000, seed=1, image_size=64)
    labels, counts, chosen = support["label"][:], dict.fromkeys(range(len(taxa())), 0), []
    for row, label in enumerate(labels):
        counts[label] += 1
        chosen += [row] if counts[label] <= SHOTS else []
    names = [f"{labels[row]:02d}" for row in chosen]
    few = FewShotClassifier.fit(embed(model, processor, support.select(chosen)), names)
    return np.array([int(name) for name in few.predict(embeds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="clip-nano", help="name of a shipped model, or a folder")
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--n", type=int, default=5_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = dio.model_path(args.model) if args.model in dio.list_models() else args.model
    model = CLIPModel.from_pretrained(path, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(path)
    rows, tree = dio.load("creatures", split=args.split, n=args.n, image_size=64), taxa()
    truth = np.array(rows["label"])
    embeds = embed(model, processor, rows)
    classifier = TaxonClassifier(model, processor, TaxonIndex.build(model, processor, tree))
    lines = {}
    for depth, rank in reversed(list(enumerate(RANKS, start=1))):
        groups = [taxon.names[:depth] for taxon in tree]
        if len(set(groups)) == 1:
            continue
        columns = [*RANKS[:-1], "species_epithet"][:depth]
        found = [tuple(row[column] for column in columns) for (row,) in classifier.rows(embeds, rank=rank, top_k=1)]
        lines[f"{rank} (of {len(set(groups))})"] = np.array(
            [groups[label] == name for label, name in zip(truth, found, strict=True)]
        )
    few = name_by_few(model, processor, embeds)
    lines[f"species, by {SHOTS} images of each (SimpleShot)"] = few == truth
    species, occluded = next(iter(lines.values())), np.array(rows["occluded"])
    lines["species, no leaves in front"], lines["species, leaves in front"] = species[~occluded], species[occluded]
    certain = classifier.rows(embeds, rank="auto", min_confidence=0.9)
    named = [(row[0], tree[label]) for row, label in zip(certain, truth, strict=True) if row]
    right = [
        (row["species_epithet"] if row["rank"] == "species" else row[row["rank"]]) in taxon.names
        for row, taxon in named
    ]
    lines["lowest rank with 90% confidence"] = np.array(right)
    print(f"Split {args.split}, seed 0, 64 pixels:\n\n| | accuracy | 95 percent interval | n |\n|-|-|-|-|")
    for name, hits in lines.items():
        low, high = wilson(int(hits.sum()), len(hits))
        print(f"| {name} | {hits.mean():.1%} | {low:.1%} to {high:.1%} | {len(hits)} |")
    ranks = [row["rank"] for row, _ in named]
    shares = ", ".join(f"{rank} {ranks.count(rank) / len(truth):.1%}" for rank in RANKS if rank in ranks)
    print(f"\nWith 90% confidence, images get a name at: {shares}.")


if __name__ == "__main__":
    main()
