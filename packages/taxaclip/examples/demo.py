"""Trains a tiny CLIP on drawn creatures for half a minute, and lets it name new ones at every rank.

    python packages/taxaclip/examples/demo.py --out demo/taxaclip

The creatures have a taxonomy, sexes, life stages and beaks, all known. This shows the way through the package, not
what BioCLIP 2 can do: the model has few weights and sees 1,200 images.
"""

import argparse
import base64
import io
import json
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import datasets
import matplotlib as mpl
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, set_seed
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import hf_diorama as dio
from taxaclip import (
    RANKS,
    FewShotClassifier,
    TaxonClassifier,
    TaxonIndex,
    TaxonPath,
    taxonomy_alignment,
    trait_alignment,
    variation_geometry,
)
from taxaclip.images import embed_images
from taxaclip.streams import ImageTextStream
from taxaclip.training import ContrastiveArguments, ContrastiveTrainer

WORLD: dict[str, Any] = {"image_size": 64, "branching": (1, 2, 2, 2, 2)}  # two orders of two families, and so on
SIZE = 32


def read_taxon(row: dict[str, Any]) -> TaxonPath:
    """The taxon of a drawn creature."""
    return TaxonPath((*(row[rank] for rank in RANKS[:-1]), row["epithet"]), row["common_name"])


def build_clip(captions: list[str]) -> tuple[CLIPModel, CLIPProcessor]:
    """A small CLIP of random weights, and a vocabulary made from the captions."""
    letters = sorted(ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    plain = CLIPTokenizer(vocab={**vocab, "<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}, merges=[])
    tokenizer = plain.train_new_from_iterator(captions, vocab_size=800)
    tower = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 48}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": SIZE, "patch_size": 8})
    config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = 64
    square = {"height": SIZE, "width": SIZE}
    return CLIPModel(config), CLIPProcessor(CLIPImageProcessorPil(size=square, do_center_crop=False), tokenizer)


def train(model: CLIPModel, processor: CLIPProcessor, rows: datasets.Dataset, folder: Path, steps: int) -> None:
    """Trains on Parquet files of the rows, with the five texts of BioCLIP."""
    columns = rows.remove_columns("species").rename_column("epithet", "species")
    columns = columns.select_columns(["image", "common_name", *RANKS])
    for number in range(2):
        columns.shard(2, number).to_parquet(folder / f"creatures-{number}.parquet")
    options = {"learning_rate": 2e-3, "warmup_steps": steps // 10, "logging_steps": steps // 5, "save_strategy": "no"}
    args = ContrastiveArguments(
        str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=64,
        targets="multi",
        use_cpu=True,
        report_to=[],
        **options,
    )
    ContrastiveTrainer(model, args, processor, ImageTextStream(sorted(folder.glob("*.parquet")))).train()
    model.eval()


def to_html(figure: Any, caption: str) -> str:
    """A figure as a piece of HTML."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=72)
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def score_ranks(classifier: TaxonClassifier, rows: datasets.Dataset, truth: list[TaxonPath]) -> dict[str, Any]:
    """The share of images named rightly at each rank, and at the rank that is certain enough."""
    summary = {}
    for depth, rank in enumerate(RANKS, start=1):
        found = [row for (row,) in classifier.predict(rows, rank=rank, top_k=1)]
        columns = [*RANKS[:-1], "species_epithet"][:depth]
        right = [tuple(row[c] for c in columns) == t.names[:depth] for row, t in zip(found, truth, strict=True)]
        groups = len({taxon.names[:depth] for taxon in truth})
        if groups > 1:
            summary[f"right {rank}, of {groups}"] = f"{sum(right) / len(right):.1%}"
    certain = list(classifier.predict(rows, rank="auto", min_confidence=0.8))
    named = [(rows_[0], taxon) for rows_, taxon in zip(certain, truth, strict=True) if rows_]
    right = [row[row["rank"]] in (*taxon.names, taxon.scientific_name) for row, taxon in named]
    summary["right at the lowest rank with 80% confidence"] = f"{sum(right)} of {len(right)}"
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/taxaclip"))
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    mpl.use("Agg")
    from taxaclip.plots import plot_traits, plot_variation

    set_seed(0)
    rows = dio.load("creatures", split="train", n=1200, **WORLD)
    test = dio.load("creatures", split="test", n=320, **WORLD)
    taxa = list(dict.fromkeys(map(read_taxon, rows.remove_columns(["image", "part_masks"]))))
    truth = [read_taxon(row) for row in test.remove_columns(["image", "part_masks"])]
    model, processor = build_clip([taxon.caption(kind) for taxon in taxa for kind in ("taxon_com", "sci", "com")])
    with tempfile.TemporaryDirectory() as folder:
        train(model, processor, rows, Path(folder), args.steps)
    index = TaxonIndex.build(model, processor, taxa, text_type="taxon")
    summary = score_ranks(TaxonClassifier(model, processor, index), test.select_columns("image"), truth)

    embeds = embed_images(model, processor, [image.convert("RGB") for image in test["image"]])
    names = [taxon.scientific_name for taxon in truth]
    few = FewShotClassifier.fit(embeds[:160], names[:160])
    right = [found == name for found, name in zip(few.predict(embeds[160:]), names[160:], strict=True)]
    summary[f"right species from {160 // len(set(names))} examples of each"] = f"{sum(right) / len(right):.1%}"

    order = {name: number for number, name in enumerate(sorted(set(names)))}
    species, sex = torch.tensor([order[name] for name in names]), torch.tensor(test["sex"])
    seeded = torch.Generator().manual_seed(0)
    geometry = variation_geometry(embeds, species, sex, num_permutations=199, generator=seeded)
    summary["the sexes' difference inside the species' subspace"] = (
        f"{geometry.explained_variance_ratio:.2f} (chance {geometry.chance:.2f}, p {geometry.p_value:.3f})"
    )
    means = torch.stack([embeds[species == number].mean(dim=0) for number in range(len(order))])
    by_name = {taxon.scientific_name: taxon for taxon in truth}
    ordered = [by_name[name] for name in order]
    beaks = torch.tensor(test["beak_length"], dtype=torch.double)
    beak = [float(beaks[species == number].mean()) for number in range(len(order))]
    options: dict[str, Any] = {"num_permutations": 999, "generator": seeded}
    taxonomy, trait = taxonomy_alignment(means, ordered, **options), trait_alignment(means, beak, ordered, **options)
    for name, result in (("taxonomy", taxonomy), ("beaks", trait.mantel), ("beaks beyond ancestry", trait.partial)):
        summary[f"alignment with {name}"] = f"{result.correlation:.2f} (p {result.p_value:.3f})"

    section = "<h2>taxaclip</h2><p>A tiny CLIP, trained here from scratch on drawn creatures, names new ones.</p>"
    section += to_html(plot_variation(embeds, species, sex), "Species by colour, one sex filled and the other open.")
    section += to_html(plot_traits(means, {"beak length": beak}), "Mean embeddings of species, by beak length.")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "section.html").write_text(section, encoding="utf-8")
    (args.out / "result.json").write_text(json.dumps({"summary": summary}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{what}: {value}" for what, value in summary.items()))


if __name__ == "__main__":
    main()
