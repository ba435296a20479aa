"""Says which claims of the ten papers hold, from the result files: one table, one JSON file.

    python benchmarks-hf/claims.py                 from the results that are there, on the nano models
    python benchmarks-hf/claims.py --run           after running every case that a claim reads (hours)
    python benchmarks-hf/claims.py --full mine/claims.md --classifier ID --data ID
                                                   with models and images of yours: Hub ids or folders

The table goes into the root README between its two marks. With `--full` it goes to the file that is named, the results
beside it: cases whose results are there, of the same commit, models and images, are not run again. A claim whose case
needs what was not given, or what only rendered images have, is listed with the reason. `--quick` is to see that it
runs. What makes a claim hold is in `claim_rows.py`.
"""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import harness
import run as runner
from claim_rows import CASES, Claim, Row
from given import Given, add_arguments

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
MARKS = ("<!-- claims: made by benchmarks-hf/claims.py -->", "<!-- end of claims -->")
BEFORE = ("partial_tune_digits", "partial_tune_creatures", "partial_tune_photos")  # what partial_tune_claims reads
LEFT_OUT = {
    "meda_quality": "its questions are about rendered images",
    "finer_cam_planted": "needs masks of the part in which two classes differ",
    "prompt_cam_traits": "needs masks of traits, and images in which one trait is exchanged",
    "ava_fingerprints": "its questions are about rendered images; for other towers there is `hf-ava-bench run`",
    "peft_ensemble_creatures": "with images of yours it is `peft_ensemble_digits`, which takes any",
    "peft_ensemble_photos": "with images of yours it is `peft_ensemble_digits`, which takes any",
    "taxaclip_replay": "needs images of which the species and the objects are known by their drawing",
    "taxaclip_creatures": "needs species whose ancestry and niches are known by their drawing",
}


def find_result(case: str) -> Path:
    """The result file of a case."""
    return HERE / "results" / f"{case}.json"


def read_rows(case: str) -> list[Row]:
    """The rows of a result file, or an error that says how to make it."""
    path = find_result(case)
    if not path.exists():
        raise ValueError(f"expected {path}; make it with `nox -s bench -- {case}`")
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def format_gain(claim: Claim, folder: str) -> str:
    """The difference with its interval, its unit and the file that has it."""
    digits = 2 if claim.unit in ("", "x") else 1
    gain, low, high = (f"{value:+.{digits}f}" for value in (claim.gain, claim.low, claim.high))
    number = f"{gain} [{low}, {high}] {claim.unit}".strip()
    return f"[{number}]({folder}{claim.case}.json)"


def format_table(claims: list[Claim], folder: str = "benchmarks-hf/results/") -> str:
    """A Markdown table with one row for each claim, whatever number of experiments it was put to."""
    lines = ["| system | claim | paper | here: difference, 95 % interval | verdict |", "|-|-|-|-|-|"]
    for system, text in dict.fromkeys((claim.system, claim.claim) for claim in claims):
        group = [claim for claim in claims if (claim.system, claim.claim) == (system, text)]
        here = "; ".join(f"{format_gain(claim, folder)} ({claim.differs})" for claim in group)
        verdicts = [claim.verdict for claim in group]
        verdict = verdicts[0] if len(set(verdicts)) == 1 else ", ".join(verdicts)
        lines.append(f"| {system} | {text} | {group[0].paper} | {group[0].here}: {here} | {verdict} |")
    return "\n".join(lines)


def replace_between_marks(text: str, table: str) -> str:
    """The README with this table between its marks."""
    start, end = (text.find(mark) for mark in MARKS)
    if not 0 <= start < end:
        raise ValueError(f"expected {MARKS[0]!r} before {MARKS[1]!r} in {README.name}")
    return f"{text[: start + len(MARKS[0])]}\n\n{table}\n\n{text[end:]}"


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_claims() -> list[Claim]:
    """The claims on the nano models, of the cases that have been run."""
    return [claim for case in CASES if is_measured(case) for claim in CASES[case](read_rows(case))]


def is_measured(case: str) -> bool:
    """Whether a case has a result file."""
    return find_result(case).exists()


def measure_case(name: str, given: Given, folder: Path, *, quick: bool) -> list[Row]:
    """The rows of a case with what was given, from its result file if that is there."""
    case = importlib.import_module(f"cases.{name}")
    code = harness.describe_code()
    depends = {"commit": code["commit"], "given": given.describe(case.NEEDS), "quick": quick}
    path = folder / f"{name}.json"
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        if depends.items() <= result["run"].items():
            print(f"{name}: from {path}", flush=True)
            return result["rows"]
    print(f"{name}: {depends['given']}", flush=True)
    rows = case.run_given(given, quick=quick)
    runner.write_results(name, case, rows, folder, {**code, **depends})
    return rows


def find_obstacle(name: str, given: Given) -> str | None:
    """Why a case cannot be run with what was given."""
    if name in LEFT_OUT:
        return LEFT_OUT[name]
    needs = importlib.import_module(f"cases.{name}").NEEDS
    missing = [f"`--{need}`" for need in needs if getattr(given, need) is None]
    return f"needs {' and '.join(missing)}" if missing else None


def measure_given(given: Given, folder: Path, *, quick: bool) -> str:
    """Run every case that can take what was given: the table, and a table of the claims that were left out."""
    folder.mkdir(parents=True, exist_ok=True)
    claims: list[Claim] = []
    left_out = ["| system | claim | why it was left out |", "|-|-|-|"]
    for name, make_claims in CASES.items():
        if why := find_obstacle(name, given):
            known = make_claims(read_rows(name)) if is_measured(name) else []
            names = dict.fromkeys((claim.system, claim.claim) for claim in known) or [("", f"those of `{name}`")]
            left_out += [f"| {system} | {text} | {why} |" for system, text in names]
            continue
        about = given.describe(importlib.import_module(f"cases.{name}").NEEDS)
        rows = measure_case(name, given, folder, quick=quick)
        claims += [replace(claim, differs=about) for claim in make_claims(rows)]
    if not claims:
        raise ValueError("expected models or images that some claim can be put to; see --help")
    return "\n\n".join([format_table(claims, folder=""), *(["\n".join(left_out)] if len(left_out) > 2 else [])]) + "\n"


def check_output(path: Path) -> None:
    """An error where the table or the results beside it would fall on those of the repository."""
    if path.resolve() == README or path.resolve().parent == HERE / "results":
        raise ValueError(f"expected a file of your own after --full, got {path}, which is part of the repository")


def write_readme() -> str:
    """Write the table of the nano models into the README, and the claims beside the results."""
    claims = read_claims()
    for name in CASES:
        if not is_measured(name):
            print(f"not measured yet: {name}", file=sys.stderr)
    table = format_table(claims)
    write(README, replace_between_marks(README.read_text(encoding="utf-8"), table))
    rows = [asdict(claim) | {"verdict": claim.verdict} for claim in claims]
    write(HERE / "results" / "claims.json", json.dumps({"schema": 1, "claims": rows}, indent=1) + "\n")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the cases first")
    parser.add_argument("--full", type=Path, metavar="FILE", help="where the table with your models and images goes")
    parser.add_argument("--quick", action="store_true", help="with --full: a few images and steps")
    add_arguments(parser)
    args = parser.parse_args()
    given = Given(**{field.name: getattr(args, field.name) for field in fields(Given)})
    if args.full is None and (args.quick or given != Given()):
        parser.error("models and images want --full FILE")
    try:
        if args.full is not None:
            check_output(args.full)
            table = measure_given(given, args.full.parent, quick=args.quick)
            write(args.full, table)
        else:
            if args.run:
                subprocess.run([sys.executable, str(HERE / "run.py"), *BEFORE, *CASES], check=True)
            table = write_readme()
    except (OSError, ValueError) as error:
        sys.exit(f"claims.py: {error}")
    print(table)


if __name__ == "__main__":
    main()
