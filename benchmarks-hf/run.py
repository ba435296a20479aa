"""Runs benchmark cases and writes results/<case>.json.

    python benchmarks-hf/run.py diorama_render            one case
    python benchmarks-hf/run.py diorama_render --quick    the smallest point, a few rounds, nothing written

A case is a file cases/<case>.py with one of
    CASE = harness.Timing(...)                 speed: checked, then timed, by the harness
    def run(*, quick: bool) -> list[dict]      quality: one row for each point; the key "samples" holds raw values
and, for its figure, PLOT = {"x": column, "y": column, "line": column, "low": column, "high": column}.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import harness

HERE = Path(__file__).resolve().parent
CASES = sorted(path.stem for path in (HERE / "cases").glob("*.py"))
SCHEMA = 1


def run_case(case: ModuleType, *, quick: bool) -> list[harness.Row]:
    """The rows of a case. A failed check rises: a wrong result has no speed."""
    if hasattr(case, "CASE"):
        return harness.run_timing(case.CASE, quick=quick)
    rows: list[harness.Row] = case.run(quick=quick)
    return rows


def format_cell(value: object) -> str:
    """A number with as many digits as it is worth reading."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_table(rows: list[harness.Row]) -> str:
    """The rows as a Markdown table, without raw samples and other lists."""
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (list, dict)))
    )
    lines = [columns, ["---"] * len(columns)]
    lines += [[format_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def write_results(name: str, case: ModuleType, rows: list[harness.Row], folder: Path, code: dict[str, object]) -> Path:
    """Write the rows with all that they depend on, whole or not at all."""
    about = (case.__doc__ or name).strip().splitlines()[0]
    result = {"schema": SCHEMA, "case": name, "about": about, "run": harness.describe_run(code)}
    result |= {"plot": getattr(case, "PLOT", None), "rows": rows}
    path = folder / f"{name}.json"
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--quick", action="store_true", help="see that a case runs; writes nothing")
    args = parser.parse_args()
    for name in args.cases:
        code = harness.describe_code()
        case = importlib.import_module(f"cases.{name}")
        print(f"\n{name}: {(case.__doc__ or '').strip().splitlines()[0]}", flush=True)
        try:
            rows = run_case(case, quick=args.quick)
        except AssertionError as error:
            sys.exit(f"{name}: the check failed, nothing was timed or written: {error}")
        print(format_table(rows))
        if all("skipped" in row for row in rows):
            print(f"{name}: nothing was measured or written")
        elif not args.quick:
            print(write_results(name, case, rows, HERE / "results", code).relative_to(HERE.parent))


if __name__ == "__main__":
    main()
