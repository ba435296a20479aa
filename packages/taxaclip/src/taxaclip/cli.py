"""Command line: `taxaclip convert`, `index`, `taxa`, `predict` and `embed`."""

import argparse
import csv
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import huggingface_hub
import torch
from transformers import CLIPModel, CLIPProcessor

from taxaclip.classification import TaxonClassifier
from taxaclip.convert import from_pretrained, hf_to_open_clip, open_clip_to_hf
from taxaclip.images import find_images
from taxaclip.index import TaxonIndex
from taxaclip.labels import LabelClassifier
from taxaclip.provenance import RunLog, hash_folder, hash_model, hash_processor
from taxaclip.rows import finished_names, write_rows
from taxaclip.taxonomy import RANKS
from taxaclip.writing import read_taxa, write_embeddings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="taxaclip", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="open_clip checkpoint to a folder of transformers, or back")
    convert.add_argument("src", type=Path, help="folder or file of the checkpoint")
    convert.add_argument("dst", type=Path, help="new folder")
    convert.add_argument("--reverse", action="store_true", help="from a folder of transformers to open_clip")
    convert.add_argument("--dtype", choices=sorted(DTYPES), help="of the written weights; default: as in the source")
    convert.add_argument("--hidden-act", choices=["gelu", "quick_gelu"], help="instead of what the configuration says")
    convert.add_argument("--keep-replay", action="store_true", help="also write the projection of the replay data")
    convert.add_argument("--push-to-hub", metavar="REPO", help="also upload the result to this repository")
    index = commands.add_parser("index", help="embed the taxa of a CSV file")
    index.add_argument("taxa", type=Path, help=f"CSV with the columns {', '.join(RANKS)} and, if known, common_name")
    index.add_argument("output", type=Path, help="folder of the index")
    index.add_argument("--dtype", choices=["float32", "float16", "int8", "int8+float16"], default="float16")
    taxa = commands.add_parser("taxa", help="list the taxa of an index, or its clades at a rank, as CSV")
    taxa.add_argument("index", type=Path, help="folder of a taxon index")
    taxa.add_argument("--rank", choices=RANKS, default="species", help="one line for each clade of this rank")
    taxa.add_argument("--within", nargs="+", metavar="CLADE", help="only taxa of these clades")
    taxa.add_argument("--output", type=Path, help="CSV file; default: print")
    predict = commands.add_parser("predict", help="the likeliest taxa, or labels, of images; goes on where it stopped")
    predict.add_argument("--index", type=Path, help="folder of a taxon index")
    predict.add_argument("--labels", help="labels, separated by commas, instead of an index")
    predict.add_argument("--rank", choices=[*RANKS, "auto"], default="species")
    predict.add_argument("--min-confidence", type=float, default=0.9, help="for --rank auto")
    predict.add_argument("--within", nargs="+", metavar="CLADE", help="only taxa of these clades")
    predict.add_argument("--top-k", type=int, default=5)
    predict.add_argument("--output", type=Path, required=True, help=".jsonl, .csv or .parquet; what is there is kept")
    embed = commands.add_parser("embed", help="image embeddings as safetensors; needs no index")
    embed.add_argument("--output", type=Path, required=True, help="safetensors file; names are in its metadata")
    for command in (predict, embed):
        command.add_argument("images", nargs="+", type=Path, help="images, and folders of images")
        command.add_argument("--batch-size", type=int, default=32)
    for command in (index, predict, embed):
        command.add_argument("--model", required=True, help="Hub id, folder or file, as of taxaclip.from_pretrained")
        command.add_argument("--tokenizer", help="Hub id or folder, for a model without one")
        command.add_argument("--device", default="cpu")
        command.add_argument("--log", type=Path, help="JSON file about the run: versions, hashes, arguments, times")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 with one line on stderr for what cannot be done.

    Args:
        arguments (list of `str`, *optional*): the arguments; those of the process by default.
    """
    args = build_parser().parse_args(arguments)
    commands = {"convert": _convert, "index": _index, "taxa": _taxa, "predict": _predict, "embed": _embed}
    try:
        with RunLog(getattr(args, "log", None), args.command, vars(args)) as log:
            commands[args.command](args, log)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"taxaclip: {error}\n")
        return 2
    if written := args.dst if args.command == "convert" else args.output:
        sys.stdout.write(f"{written}\n")
    return 0


def _convert(args: argparse.Namespace, log: RunLog) -> None:
    if args.reverse and (args.dtype or args.hidden_act or args.keep_replay):
        raise ValueError("--dtype, --hidden-act and --keep-replay do not go with --reverse, which is bit-exact.")
    if args.reverse:
        hf_to_open_clip(args.src, args.dst)
    else:
        dtype = DTYPES.get(args.dtype)
        open_clip_to_hf(args.src, args.dst, dtype=dtype, hidden_act=args.hidden_act, keep_replay=args.keep_replay)
    if args.push_to_hub:
        huggingface_hub.create_repo(args.push_to_hub, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=args.push_to_hub, folder_path=args.dst)


def _load(args: argparse.Namespace, log: RunLog) -> tuple[CLIPModel, CLIPProcessor]:
    model, processor = from_pretrained(args.model, tokenizer=args.tokenizer)
    if args.log:
        log.add(model_sha256=hash_model(model), processor_sha256=hash_processor(processor))
    return model.eval().to(args.device), processor


def _index(args: argparse.Namespace, log: RunLog) -> None:
    taxa = read_taxa(args.taxa)
    model, processor = _load(args, log)
    parts_dir = args.output.with_name(f".{args.output.name}.parts")
    index = TaxonIndex.build(model, processor, taxa, dtype=args.dtype, parts_dir=parts_dir)
    index.save_pretrained(args.output)
    log.add(num_taxa=len(taxa), **_index_hash(args.output, args.log))


def _taxa(args: argparse.Namespace, log: RunLog) -> None:
    lines = TaxonIndex.from_pretrained(args.index).clades(args.rank, within=args.within)
    with args.output.open("w", encoding="utf-8", newline="") if args.output else nullcontext(sys.stdout) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*RANKS[: RANKS.index(args.rank) + 1], "common_name", "num_taxa"])
        writer.writerows([*names, common_name, count] for names, common_name, count in lines)


def _predict(args: argparse.Namespace, log: RunLog) -> None:
    if (args.index is None) == (args.labels is None):
        raise ValueError("Expected either --index or --labels.")
    done = finished_names(args.output)
    images = [path for path in _find_images(args.images) if str(path) not in done]
    model, processor = _load(args, log)
    if args.labels is not None:
        labels = [label.strip() for label in args.labels.split(",")]
        results = LabelClassifier(model, processor, labels).predict(
            images, top_k=args.top_k, batch_size=args.batch_size
        )
    else:
        log.add(**_index_hash(args.index, args.log))
        results = TaxonClassifier(model, processor, TaxonIndex.from_pretrained(args.index)).predict(
            images,
            rank=args.rank,
            top_k=args.top_k,
            min_confidence=args.min_confidence,
            within=args.within,
            batch_size=args.batch_size,
        )
    write_rows(args.output, results, [str(path) for path in images])
    log.add(num_images=len(images), num_done_before=len(done))


def _embed(args: argparse.Namespace, log: RunLog) -> None:
    images = list(_find_images(args.images))
    model, processor = _load(args, log)
    write_embeddings(args.output, model, processor, images, args.batch_size)
    log.add(num_images=len(images))


def _index_hash(folder: Path, is_asked: object) -> dict[str, str]:
    return {"index_sha256": hash_folder(folder)} if is_asked else {}


def _find_images(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"Expected an image or a folder of images, but there is no {path}.")
        yield from find_images(path)


if __name__ == "__main__":
    sys.exit(main())
