"""The command `hf-ava-bench`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_ava_bench.abilities import ABILITIES, find_ability
from hf_ava_bench.build import build_dataset
from hf_ava_bench.data import load_ability
from hf_ava_bench.evaluation import list_metrics
from hf_ava_bench.export import export_space
from hf_ava_bench.formats import write_json
from hf_ava_bench.leaks import find_leaks
from hf_ava_bench.results import score_files


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Example:

    ```python
    >>> from hf_ava_bench.cli import main
    >>> main(["metrics"])
    ability_accuracy
    anls
    ava_bench
    ciede2000
    counting_error
    depth_error
    giou
    0

    ```
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"hf-ava-bench: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-ava-bench", description="Fourteen visual abilities of vision models.")
    commands = parser.add_subparsers(required=True)

    score = commands.add_parser("score", help="score a file of predictions; no model is needed")
    score.add_argument("predictions", help="JSON or JSON lines, entries with question_id and text")
    score.add_argument("--ground-truth", help="JSON with the answers; by default `answer` of each prediction")
    score.add_argument("--ability", help=f"one of {', '.join(ABILITIES)}; by default that of the entries")
    score.add_argument("--unparsable", default="worst", choices=("worst", "skip", "raise"))
    score.add_argument("--coords", default="auto", choices=("auto", "unit", "permille", "pixel"))
    score.add_argument("--parity", choices=("ava-2026",), help="what the released evaluator computes, with its faults")
    score.add_argument("--values", action="store_true", help="write the metric of each item too")
    score.add_argument("--out", help="result file; printed if not given")
    score.set_defaults(run=_score)

    build = commands.add_parser("build", help="write a folder that datasets.load_dataset reads")
    build.add_argument("--source", default="hub", help='"hub", "mini" or "path:DIR"')
    build.add_argument("--abilities", nargs="+", help=f"of {', '.join(ABILITIES)}; all by default")
    build.add_argument("--splits", nargs="+", default=["train", "test"])
    build.add_argument("--out", required=True)
    build.add_argument("--max-samples", type=int, help="most items of each part")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and report them")
    build.set_defaults(run=_build)

    leaks = commands.add_parser("leaks", help="look for images that are in two splits of a built folder")
    leaks.add_argument("folder")
    leaks.add_argument("ability")
    leaks.add_argument("--max-distance", type=int, default=4, help="most of 64 bits that differ")
    leaks.set_defaults(run=_leaks)

    metrics = commands.add_parser("metrics", help="list the metrics for evaluate.load")
    metrics.set_defaults(run=lambda args: _print("\n".join(list_metrics())))

    export = commands.add_parser("export", help="write the folder of a Space for the Hub")
    export.add_argument("what", choices=("space",))
    export.add_argument("name", help="a metric, see `hf-ava-bench metrics`")
    export.add_argument("--out", required=True)
    export.set_defaults(run=lambda args: _print(str(export_space(args.name, args.out))))
    return parser


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _build(args: argparse.Namespace) -> None:
    folder = build_dataset(
        args.out,
        args.source,
        args.abilities,
        splits=args.splits,
        skip_bad_rows=args.skip_bad_rows,
        n=args.max_samples,
        seed=args.seed,
    )
    _print(str(folder))


def _leaks(args: argparse.Namespace) -> None:
    train, test = (load_ability(args.ability, f"path:{args.folder}", split) for split in ("train", "test"))
    found = find_leaks(train, test, max_distance=args.max_distance)
    for leak in found:
        _print(f"{leak.left} {leak.right} {'equal bytes' if leak.same_bytes else f'{leak.distance} of 64 bits'}")
    if found:
        raise ValueError(f"{len(found)} pairs of images are in train and test, or nearly.")


def _score(args: argparse.Namespace) -> None:
    options: dict[str, Any] = {"unparsable": args.unparsable, "coords": args.coords, "parity": args.parity}
    ability = find_ability(args.ability).id if args.ability else None
    result = score_files(args.predictions, args.ground_truth, ability=ability, values=args.values, **options)
    if args.out:
        write_json(args.out, result)
        _print(f"{Path(args.out)}")
    for score in result["scores"]:
        value = "no answer counted" if score["value"] is None else f"{score['value']:.4f}"
        _print(
            f"{score['ability']}: {score['metric']} {value} "
            f"({'higher' if score['higher_is_better'] else 'lower'} is better; n {score['n']}, "
            f"coverage {score['coverage']:.1%}, unparsable {score['n_unparsable']}, missing {score['n_missing']})"
        )
