"""The command `hf-compbench`: build, audit, run, score."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_compbench.audit import AuditReport, audit_pairs
from hf_compbench.building import build_compbench
from hf_compbench.files import write_text
from hf_compbench.loading import CONFIGS, load_compbench
from hf_compbench.predictions import read_predictions
from hf_compbench.prompting import LAYOUTS
from hf_compbench.published import ACCURACIES, compare_counts
from hf_compbench.report import save_report
from hf_compbench.scores import Scores
from hf_compbench.scoring import Mode, score

_RUN = ("model", "prompt", "shown", "mode", "layout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an audit that failed, 2 for bad input."""
    args = _build_parser().parse_args(arguments)
    try:
        return int(args.command(args))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"hf-compbench: {error}\n")
        return 2


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-compbench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="label files -> Parquet folder for datasets.load_dataset")
    build.add_argument("labels", help="folder with the authors' label files")
    build.add_argument("--out", required=True)
    build.add_argument("--allow-leaks", action="store_true", help="write clean splits that do not pass the audit")
    _add_images(build)
    build.set_defaults(command=_build)
    audit = commands.add_parser("audit", help="can answers be had without comparing images? exits 1 if so")
    audit.add_argument("path", help="folder of label files or of Parquet, or 'mini'")
    audit.add_argument("--split", choices=("official", "clean"), default="clean")
    audit.add_argument("--out", help="report, .html or .json")
    audit.set_defaults(command=_audit)
    run = commands.add_parser("run", help="ask a model in both image orders")
    run.add_argument("model", help="Hub id or folder, or heuristic:left, heuristic:random, ...")
    run.add_argument("--store", required=True, help="JSONL file of responses; a second run goes on where it stopped")
    run.add_argument("--prompt", default="v2")
    run.add_argument("--layout", choices=LAYOUTS)
    run.add_argument("--mode", choices=("generate", "logprob"), default="generate")
    run.add_argument("--chat-template", help="'plain', for processors that have none")
    run.add_argument("--device", default="cpu")
    run.add_argument("--dtype", default="float32")
    run.add_argument("--check-batch", type=int, metavar="N", help="only see that batches of N give the same replies")
    _add_data(run)
    run.set_defaults(command=_run)
    scoring = commands.add_parser("score", help="score stored responses; needs no model")
    scoring.add_argument("responses", help="JSONL file or folder of them")
    scoring.add_argument(
        "--predictions", metavar="SOURCE", help="the file is a released prediction file of this source"
    )
    scoring.add_argument(
        "--baseline", action="append", default=[], metavar="NAME=FILE", help="another run to show beside"
    )
    for name in _RUN:
        scoring.add_argument(f"--{name}", help="of several runs in the store the one with this value")
    scoring.add_argument("--paper", action="store_true", help="read replies as the authors' scripts did")
    scoring.add_argument("--report", help="page to write, .html or .md")
    scoring.add_argument("--out", help="JSON file to write")
    _add_data(scoring)
    scoring.set_defaults(command=_score)
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-root", help="folder with your copies of the images")
    parser.add_argument("--accept-terms", action="store_true", help="you have read and accept the terms of the images")
    parser.add_argument("--skip-missing", action="store_true", help="leave out rows whose images are missing")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", choices=CONFIGS, default="mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--path", help="folder of label files or of Parquet")
    parser.add_argument("--num-pairs", type=int, help="pairs of each kind, for mini")
    parser.add_argument("--seed", type=int, help="seed of mini; from 1000 for final numbers on its split heldout")
    _add_images(parser)


def _image_options(args: argparse.Namespace) -> dict[str, Any]:
    missing = "skip" if args.skip_missing else "error"
    return {"image_root": args.image_root, "accept_terms": args.accept_terms, "on_missing": missing}


def _load(args: argparse.Namespace) -> datasets.Dataset:
    mini = {name: value for name in ("num_pairs", "seed") if (value := getattr(args, name)) is not None}
    return load_compbench(args.config, args.split, path=args.path, **_image_options(args), **mini)


def _load_val(args: argparse.Namespace) -> datasets.Dataset | None:
    """The labels of the val split that goes with a test split: what may be learned without images."""
    name, _, part = args.split.partition("_")
    return load_compbench(args.config, f"{name}_val", path=args.path) if part == "test" else None


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _build(args: argparse.Namespace) -> int:
    counts = build_compbench(args.labels, args.out, allow_leaks=args.allow_leaks, **_image_options(args))
    for config, by_split in counts.items():
        _write(f"{config}: " + ", ".join(f"{split} {n}" for split, n in by_split.items()))
    return 0


def _audit(args: argparse.Namespace) -> int:
    if args.path == "mini":
        report = audit_pairs(load_compbench("mini"))
    else:
        test, val = (load_compbench("all", f"{args.split}_{part}", path=args.path) for part in ("test", "val"))
        report = audit_pairs(test, val)
    _write(str(report))
    counts = compare_counts(test, val) if args.path != "mini" and args.split == "official" else []
    for row in counts:
        _write(
            f"{row['column']}: {row['test']} test and {row['val']} val pairs; at review time "
            f"{row['published_test']} and {row['published_val']}"
        )
    if args.out:
        _save_audit(report, counts, Path(args.out))
    return 0 if report.passed else 1


def _save_audit(report: AuditReport, counts: list[dict[str, Any]], path: Path) -> None:
    if path.suffix not in (".html", ".json"):
        raise ValueError(f"Expected a report that ends in .html or .json, got {path.name!r}.")
    text = json.dumps({**report.to_dict(), "counts": counts}, indent=1) if path.suffix == ".json" else report.to_html()
    write_text(path, text + "\n")


def _run(args: argparse.Namespace) -> int:
    from hf_compbench.prompting import load_prompt
    from hf_compbench.runners import HeuristicRunner, TransformersRunner, run_model
    from hf_compbench.runners.run import build_requests, list_places
    from hf_compbench.runners.transformers_runner import compare_batch_sizes

    dataset = _load(args)
    if args.model.startswith("heuristic:"):
        runner: Any = HeuristicRunner(args.model.partition(":")[2])
    else:
        options = {"chat_template": args.chat_template, "device": args.device, "dtype": args.dtype}
        runner = TransformersRunner.from_pretrained(args.model, **options)
    if args.check_batch:
        if not isinstance(runner, TransformersRunner):
            raise ValueError(f"--check-batch compares batches of a model, got {args.model!r}.")
        few = dataset.select(range(min(args.check_batch, len(dataset))))
        places = list_places(few, ["12"], 1)
        layout = args.layout or runner.layout
        requests = list(build_requests(few, runner, load_prompt(args.prompt), places, layout=layout))
        different = compare_batch_sizes(runner, requests, args.check_batch)
        _write(f"{len(different)} of {len(requests)} replies change in a batch of {args.check_batch}: {different[:3]}")
        return 1 if different else 0
    options = {"store": args.store, "prompt": args.prompt, "layout": args.layout, "mode": args.mode}
    responses = run_model(dataset, runner, **options)
    _write(str(score(dataset, responses, train=_load_val(args))))
    return 0


def _score(args: argparse.Namespace) -> int:
    wanted = {name: value for name in _RUN if (value := getattr(args, name))}
    responses = _read_responses(args.responses, args.predictions, wanted)
    dataset, train = _load(args), _load_val(args)
    mode: Mode = "paper" if args.paper else "strict"
    scores = score(dataset, responses, mode=mode, train=train)
    baselines = {}
    for given in args.baseline:
        name, _, path = given.partition("=")
        baselines[name] = score(dataset, _read_responses(path, args.predictions, {}), mode=mode)
    _write(scores.to_table(baselines))
    if args.predictions and args.split == "official_test":
        _write_published(scores, responses[0]["model"])
    if args.out:
        write_text(Path(args.out), json.dumps(scores.to_dict(), indent=1) + "\n")
    if args.report:
        save_report(args.report, dataset, scores, baselines=baselines)
    return 0


def _read_responses(path: str, source: str | None, wanted: dict[str, str]) -> list[dict[str, Any]]:
    """The responses of a store, or of a released prediction file; of several runs those that are asked for."""
    from hf_compbench.runners.store import read_responses

    if source is not None:
        return read_predictions(path, source)
    found = [one for one in read_responses(path) if all(one.get(name) == value for name, value in wanted.items())]
    if not found:
        raise ValueError(f"Expected responses of {wanted} in {path}, found none.")
    return found


def _write_published(scores: Scores, model: str) -> None:
    """What the authors' files gave for the same columns."""
    for code, column in scores.columns.items():
        if (value := ACCURACIES.get(model, {}).get(code)) is not None:
            _write(
                f"{code}: {100 * column['accuracy']:.1f} here, {value:.1f} from the review-time files of the authors"
            )
