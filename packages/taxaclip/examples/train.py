"""Trains a tiny CLIP from scratch on drawn creatures for half a minute, and lets it name new ones at every rank.

    python packages/taxaclip/examples/train.py --out out

Run it again to go on from the last checkpoint. With files of your own (Parquet with an image and seven ranks, or the
tars of TreeOfLife) and a CLIP from the Hub, the same lines train a large one.
"""

import argparse
from pathlib import Path
from typing import Any

import datasets
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, set_seed
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import hf_diorama as dio
from taxaclip import RANKS, TaxonClassifier, TaxonIndex, TaxonPath
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
    vision = {**tower, "image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    square = {"height": SIZE, "width": SIZE}
    return CLIPModel(config), CLIPProcessor(CLIPImageProcessorPil(size=square, do_center_crop=False), tokenizer)


def write_files(rows: datasets.Dataset, folder: Path) -> list[Path]:
    """Two Parquet files of images, common names and the seven ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = rows.remove_columns("species").rename_column("epithet", "species")
    columns = columns.select_columns(["image", "common_name", *RANKS])
    paths = [folder / f"creatures-{number}.parquet" for number in range(2)]
    for number, path in enumerate(paths):
        columns.shard(2, number).to_parquet(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    set_seed(0)
    rows = dio.load("creatures", split="train", n=1_200, **WORLD)
    test = dio.load("creatures", split="test", n=320, **WORLD)
    taxa = list(dict.fromkeys(map(read_taxon, rows.remove_columns(["image", "part_masks"]))))
    model, processor = build_clip([taxon.caption(kind) for taxon in taxa for kind in ("taxon_com", "sci", "com")])
    arguments = ContrastiveArguments(
        str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=64,
        targets="multi",
        learning_rate=2e-3,
        warmup_steps=args.steps // 10,
        logging_steps=max(args.steps // 5, 1),
        save_steps=max(args.steps // 2, 1),
        use_cpu=True,
        report_to=[],
    )
    stream = ImageTextStream(write_files(rows, args.out / "data"))
    ContrastiveTrainer(model, arguments, processor, stream).train(resume_from_checkpoint=True)

    index = TaxonIndex.build(model.eval(), processor, taxa, text_type="taxon")
    classifier = TaxonClassifier(model, processor, index)
    truth = [read_taxon(row) for row in test.remove_columns(["image", "part_masks"])]
    for depth, rank in list(enumerate(RANKS, start=1))[3:]:
        found = [row for (row,) in classifier.predict(test.select_columns("image"), rank=rank, top_k=1)]
        columns = [*RANKS[:-1], "species_epithet"][:depth]
        right = [tuple(row[c] for c in columns) == t.names[:depth] for row, t in zip(found, truth, strict=True)]
        print(f"{rank}: {sum(right) / len(right):.1%} of {len(right)} new images are right")


if __name__ == "__main__":
    main()
