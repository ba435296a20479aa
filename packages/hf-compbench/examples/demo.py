"""Asks llava-nano to compare images in both orders, audits the questions, and mines pairs from photos.

    python packages/hf-compbench/examples/demo.py --out demo/hf-compbench
    python packages/hf-compbench/examples/demo.py --out demo/hf-compbench --image DIR

DIR is a folder of photos: pairs of edited photos are asked as well. With `--data-dir` it may hold Parquet files.
"""

import argparse
import json
import sys
from html import escape
from pathlib import Path

import datasets

import hf_diorama
from hf_compbench import audit_pairs, build_report, load_compbench, score
from hf_compbench.photos import load_photos
from hf_compbench.runners import HeuristicRunner, TransformersRunner, run_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/hf-compbench"))
    parser.add_argument("--data-dir", help="photos to compare as well: a folder of Parquet files or of images")
    parser.add_argument("--image", metavar="DIR", help="the same, left out if they are too few for pairs")
    parser.add_argument("--num-pairs", type=int, default=16, help="pairs of each kind of comparison")
    args = parser.parse_args()
    options = {"num_pairs": args.num_pairs, "image_size": 64, "image_root": args.data_dir}
    few = None
    try:
        if args.image and len(load_photos(args.image)) >= 2 * args.num_pairs:
            options["image_root"] = args.image
        elif args.image:
            few = f"too few for {args.num_pairs} pairs of each kind, which need {2 * args.num_pairs}: left out"
        ds = load_compbench("mini", "heldout", seed=1000, **options)  # no model of hf-diorama saw seeds from 1000
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
    audit = audit_pairs(ds)
    runner = TransformersRunner.from_pretrained(hf_diorama.model_path("llava-nano"), chat_template="plain")
    scores = score(ds, run_model(ds, runner, prompt="nano", mode="logprob"))
    left = score(ds, run_model(ds, HeuristicRunner("left")))
    print(scores)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "section.html").write_text(build_section(ds, scores, left, audit), encoding="utf-8")
    summary = summarise(ds, scores, left, audit) | ({"your photos": few} if few else {})
    (args.out / "result.json").write_text(
        json.dumps({"summary": summary, "scores": scores.to_dict(), "audit": audit.to_dict()}, indent=1) + "\n",
        encoding="utf-8",
    )
    print("\n".join(f"{what}: {value}" for what, value in summary.items()))


def mean(scores: object, name: str) -> float:
    values = [column[name] for column in scores.columns.values() if name in column]
    return sum(values) / len(values)


def summarise(ds: datasets.Dataset, scores: object, left: object, audit: object) -> dict[str, str]:
    return {
        "mini-CompBench": f"{ds.num_rows} pairs of {len(scores.relativities)} kinds, mined offline",
        "audit of the pairs": "passed" if audit.passed else f"{len(audit.failures)} checks failed",
        "llava-nano, accuracy": f"{scores.macro:.1%} [{100 * scores.macro_low:.1f}, {100 * scores.macro_high:.1f}]",
        "llava-nano, right in both orders": f"{mean(scores, 'pair_accuracy'):.1%}",
        "always Left, accuracy": f"{left.macro:.1%}",
        "always Left, right in both orders": f"{mean(left, 'pair_accuracy'):.1%}",
    }


def build_section(ds: datasets.Dataset, scores: object, left: object, audit: object) -> str:
    return (
        "<p>Every question is asked twice, the second time with the images exchanged. llava-nano was never taught to "
        "compare: where it likes one side its accuracy stays near chance, and the share of pairs that it gets right "
        "in both orders shows it.</p>\n"
        + build_report(ds, scores, title="llava-nano", baselines={"always Left": left}, num_examples=5)
        + f"\n<h3>Audit</h3>\n<details><summary>{escape('passed' if audit.passed else 'FAILED')}</summary>"
        + f'<div class="scroll">{audit.to_html()}</div></details>\n'
    )


if __name__ == "__main__":
    main()
