"""The command `hf-ava-bench`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from hf_ava_bench.abilities import ABILITIES, find_ability
from hf_ava_bench.benchmark import run_benchmark
from hf_ava_bench.build import build_dataset
from hf_ava_bench.comparison import compare_rankings
from hf_ava_bench.data import load_ability
from hf_ava_bench.evaluation import list_metrics
from hf_ava_bench.export import export_json, export_space
from hf_ava_bench.fingerprint import Fingerprint
from hf_ava_bench.formats import write_json
from hf_ava_bench.leaks import find_leaks
from hf_ava_bench.plots import plot_fingerprints, plot_rankings
from hf_ava_bench.ranking import RANKS, rank_towers
from hf_ava_bench.results import score_files
from hf_ava_bench.shortcuts import audit_shortcuts


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
    for add in (_add_score, _add_data, _add_run, _add_rank, _add_metrics):
        add(commands)
    return parser


def _add_score(commands: Any) -> None:
    score = commands.add_parser("score", help="score a file of predictions; no model is needed")
    score.add_argument("predictions", help="JSON or JSON lines, entries with question_id and text")
    score.add_argument("--ground-truth", help="JSON with the answers; by default `answer` of each prediction")
    score.add_argument("--ability", help=f"one of {', '.join(ABILITIES)}; by default that of the entries")
    score.add_argument("--unparsable", default="worst", choices=("worst", "skip", "raise"))
    score.add_argument("--coords", default="auto", choices=("auto", "unit", "permille", "pixel"))
    score.add_argument("--parity", choices=("ava-2026",), help="what the released evaluator computes, with its faults")
    score.add_argument("--values", action="store_true", help="write the metric of each item too")
    score.add_argument("--out", help="result file, JSON; a line for each ability is printed anyway")
    score.set_defaults(run=_score)


def _add_data(commands: Any) -> None:
    build = commands.add_parser("build", help="write a folder that datasets.load_dataset reads")
    _add_source(build)
    build.add_argument("--photos", help="folder of photos: rendered items of mini get them as backgrounds")
    build.add_argument("--splits", nargs="+", default=["train", "test"])
    build.add_argument("--out", required=True)
    build.add_argument("--max-samples", type=int, help="most items of each part")
    build.add_argument("--skip-bad-rows", action="store_true", help="leave bad rows out and report them")
    build.set_defaults(run=_build)

    leaks = commands.add_parser("leaks", help="look for images that are in two splits of a built folder")
    leaks.add_argument("folder")
    leaks.add_argument("ability")
    leaks.add_argument("--max-distance", type=int, default=4, help="most of 64 bits that differ")
    leaks.set_defaults(run=_leaks)

    audit = commands.add_parser("audit", help="how far answers get that look at the question or the mean colour only")
    _add_source(audit)
    audit.add_argument("--max-samples", type=int, help="most items of each split")
    audit.set_defaults(run=_audit)


def _add_source(parser: Any) -> None:
    parser.add_argument("--source", default="hub", help='"hub", "mini" or "path:DIR"')
    parser.add_argument("--abilities", nargs="+", help=f"of {', '.join(ABILITIES)}; all by default")
    parser.add_argument("--seed", type=int, default=0)


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="make the fingerprint of a vision model; needs the extra runner")
    run.add_argument("--vfm", required=True, help="model id or folder; known:NAME for an encoder of known abilities")
    run.add_argument("--llm", required=True, help="model id or folder of the head; tiny for an untrained one")
    run.add_argument("--out", required=True, help="folder of the run; the same command goes on where it stopped")
    _add_source(run)
    run.add_argument("--profile", default="paper", help="paper, fast or smoke")
    run.add_argument("--controls", nargs="*", default=["blind", "shuffled"], help="of blind, shuffled, random, oracle")
    run.add_argument("--image-size", type=int, default=96, help="of rendered items, in pixels")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(run=_run)


def _add_rank(commands: Any) -> None:
    rank = commands.add_parser("rank", help="rank towers by their fingerprints, or compare the ranks of two heads")
    rank.add_argument("fingerprints", nargs="+", help="fingerprint.json of each tower, or folders of runs")
    rank.add_argument("--against", nargs="+", help="those of the same towers under another head")
    rank.add_argument("--rank", default="statistical", choices=RANKS)
    rank.add_argument("--seed", type=int, default=0)
    rank.add_argument("--plot", help="picture file: a radar, or slopes of ranks with --against")
    rank.set_defaults(run=_rank)


def _add_metrics(commands: Any) -> None:
    metrics = commands.add_parser("metrics", help="list the metrics for evaluate.load")
    metrics.set_defaults(run=lambda args: _print("\n".join(list_metrics())))

    export = commands.add_parser("export", help="write the folder of a Space for the Hub, or released JSON files")
    kinds = export.add_subparsers(required=True)
    space = kinds.add_parser("space", help="a metric as a Space")
    space.add_argument("name", help="a metric, see `hf-ava-bench metrics`")
    space.add_argument("--out", required=True)
    space.set_defaults(run=lambda args: _print(str(export_space(args.name, args.out))))
    released = kinds.add_parser("json", help="items as the files that the released code trains and tests on")
    _add_source(released)
    released.add_argument("--splits", nargs="+", default=["train", "test"])
    released.add_argument("--max-samples", type=int, help="most items of each split")
    released.add_argument("--out", required=True)
    released.set_defaults(run=_export_json)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _export_json(args: argparse.Namespace) -> None:
    names = args.abilities or list(ABILITIES)
    folder = export_json(args.out, args.source, names, splits=args.splits, n=args.max_samples, seed=args.seed)
    _print(str(folder))


def _build(args: argparse.Namespace) -> None:
    photos = {} if args.photos is None else {"photos": _read_photos(Path(args.photos))}
    folder = build_dataset(
        args.out,
        args.source,
        args.abilities,
        splits=args.splits,
        skip_bad_rows=args.skip_bad_rows,
        n=args.max_samples,
        seed=args.seed,
        **photos,
    )
    _print(str(folder))


def _read_photos(folder: Path) -> list[Image.Image]:
    """Returns the images of a folder in the order of their names; files that are none are left out."""
    photos = []
    for path in sorted(folder.iterdir()):
        try:
            with Image.open(path) as image:
                photos.append(image.convert("RGB"))
        except (UnidentifiedImageError, IsADirectoryError):
            continue
    if not photos:
        raise ValueError(f"Expected photos in {folder}, found none.")
    return photos


def _audit(args: argparse.Namespace) -> None:
    for name in args.abilities or ABILITIES:
        train, test = (
            load_ability(name, args.source, split, n=args.max_samples, seed=args.seed) for split in ("train", "test")
        )
        scores = audit_shortcuts(train, test)
        _print(f"{find_ability(name).id}: " + ", ".join(f"{key} {value:.2f}" for key, value in scores.items()))


def _run(args: argparse.Namespace) -> None:
    vfm: Any = args.vfm
    if args.vfm.startswith("known:"):
        from hf_ava_bench.runner.encoders import KnownEncoder

        vfm = KnownEncoder(args.vfm.removeprefix("known:"))
    fingerprint = run_benchmark(
        vfm,
        args.llm,
        args.out,
        args.abilities or "all",
        source=args.source,
        profile=args.profile,
        seed=args.seed,
        progress=not args.quiet,
        controls=args.controls,
        **({"image_size": args.image_size} if args.source == "mini" else {}),
    )
    _print(fingerprint.table())


def _rank(args: argparse.Namespace) -> None:
    first = _load_fingerprints(args.fingerprints)
    if args.against is None:
        _print(rank_towers(first, rank=args.rank, seed=args.seed).table())
        if args.plot:
            _print(str(plot_fingerprints(first, args.plot)))
        return
    second = _load_fingerprints(args.against)
    comparison = compare_rankings(first, second, seed=args.seed)
    _print(comparison.table())
    if args.plot:
        heads = tuple(", ".join(sorted({fingerprint.llm for fingerprint in side})) for side in (first, second))
        _print(str(plot_rankings(comparison, args.plot, labels=(heads[0], heads[1]))))


def _load_fingerprints(names: Sequence[str]) -> list[Fingerprint]:
    paths = [Path(name) / "fingerprint.json" if Path(name).is_dir() else Path(name) for name in names]
    return [Fingerprint.load(path) for path in paths]


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
