"""Writes docs/benchmarks.md, each package beside its peers, from results/*.json and comparisons.py alone.

python benchmarks-hf/page.py             write it
python benchmarks-hf/page.py --check     fail if the page is another than the results make
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import comparisons
from comparisons import Comparison

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks, side by side

Each package against the way that one would go without it. A ratio is peer / ours of the same run, on the same inputs,
in turn: **above 1 ours is better**, below 1 the peer is. In brackets its quartiles over the rounds, where a file has
them. Every number is read from a result file by `python benchmarks-hf/page.py`; none is typed.
[How a number is made](../benchmarks-hf/README.md) and
[what holds of the papers](../README.md#what-holds-of-the-papers) stand elsewhere.
"""


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of cases, by name."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: result for name, result in files.items() if "rows" in result}


def link(case: str) -> str:
    """A link from the page to a result file."""
    return f"[`{case}`](../benchmarks-hf/results/{case}.json)"


def read_ratios(row: dict[str, Any], comparison: Comparison, rows: list[dict[str, Any]]) -> list[float]:
    """Peer / ours: the median and, where the file has them, its quartiles in order."""
    if comparison.against:
        place = comparison.against | {name: row[name] for name in comparison.points}
        (peer,) = (one for one in rows if place.items() <= one.items())
        return [peer[name] / row[name] for name in comparison.columns]
    middle, *ends = (1 / row[name] if comparison.inverse else row[name] for name in comparison.columns)
    return [middle, *sorted(ends)]


def format_ratios(ratios: list[float]) -> str:
    """Three digits, with the quartiles in brackets."""
    middle, *ends = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in ratios)
    return f"{middle} ({' to '.join(ends)})" if ends else middle


def find_rows(result: dict[str, Any], comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of a comparison: those that compare the peer with itself are left out."""
    rows = [row for row in result["rows"] if comparison.where.items() <= row.items()]
    rows = [row for row in rows if comparison.columns[0] in row or "skipped" in row]
    return [row for row in rows if "skipped" in row or {row[name] for name in comparison.columns} != {1.0}]


def name_point(row: dict[str, Any], comparison: Comparison) -> str:
    """What tells a row apart: "context 4,096, keep ratio 0.2"."""
    shown = {name: row[name] for name in comparison.points}
    parts = (
        value if isinstance(value, str) else f"{name.replace('_', ' ')} {value:,}" for name, value in shown.items()
    )
    return ", ".join(parts)


def make_rows(result: dict[str, Any] | None, comparison: Comparison) -> list[tuple[str, str, str, float]]:
    """One line of the table for each row: what and where, peer, ratio in words, ratio."""
    if result is None:
        return [(comparison.what, comparison.peer, f"not measured yet: `{comparison.case}`", 1.0)]
    lines = []
    for row in find_rows(result, comparison):
        if "skipped" in row:
            lines.append((comparison.what, comparison.peer, f"skipped: {row['skipped']}", 1.0))
            continue
        ratios = read_ratios(row, comparison, result["rows"])
        what = f"{comparison.what}; {name_point(row, comparison)}"
        lines.append((what, comparison.peer, format_ratios(ratios), ratios[0]))
    return lines


def make_section(side: comparisons.Side, results: dict[str, dict[str, Any]], figures: Path) -> list[str]:
    """The section of a package: its table, its figures, what was not run."""
    lines = [f"## {side.dist}", ""]
    if side.comparisons:
        lines += ["| what | peer | peer / ours | file |", "|---|---|---|---|"]
    for comparison in side.comparisons:
        for what, peer, ratio, _ in make_rows(results.get(comparison.case), comparison):
            file = link(comparison.case) if comparison.case in results else ""
            lines.append(f"| {what} | {peer} | {ratio} | {file} |")
    lines += ["", side.not_run, ""]
    for case in dict.fromkeys(comparison.case for comparison in side.comparisons):
        if case in results and (figures / f"{case}.png").exists():
            lines += [f"![{results[case]['about']}](../benchmarks-hf/figures/{case}.png)", ""]
    return lines


def make_losses(results: dict[str, dict[str, Any]]) -> list[str]:
    """Where the peer is ahead: every row below 1, the worst first in each package."""
    lines = ["## What we lose", "", "Every row above in which the other way is ahead, floors included.", ""]
    lines += ["| package | what | peer | peer / ours |", "|---|---|---|---|"]
    for side in comparisons.SIDES:
        found = [row for one in side.comparisons for row in make_rows(results.get(one.case), one) if row[3] < 1]
        for what, peer, ratio, _ in sorted(found, key=lambda row: row[3]):
            lines.append(f"| {side.dist} | {what} | {peer} | {ratio} |")
    return [*lines, ""]


def make_runs(results: dict[str, dict[str, Any]]) -> list[str]:
    """Where and when each of the files was made."""
    lines = ["## Where the numbers come from", ""]
    lines += [
        "`dirty` runs had changes that were not committed; load is that of the machine at the end of the run.",
        "",
    ]
    lines += ["| file | what | made | commit | processor or GPU | threads | load |", "|---|---|---|---|---|---|---|"]
    for name, result in results.items():
        run = result["run"]
        commit = f"{(run['commit'] or '')[:7]}{' dirty' if run['dirty'] else ''}"
        device = run["gpu"] or f"{run['cpu']}, {run['cores']} of its cores"
        threads = run["threads"]["torch"] or run["threads"]["OMP_NUM_THREADS"] or ""
        about = result["about"].rstrip(".")
        lines.append(
            f"| {link(name)} | {about} | {run['time'][:10]} | {commit} | {device} | {threads} "
            f"| {run['load_average']:.1f} |"
        )
    return lines


def make_page(results: dict[str, dict[str, Any]], figures: Path = HERE / "figures") -> str:
    """The whole page."""
    lines = [HEAD]
    for side in comparisons.SIDES:
        lines += make_section(side, results, figures)
    gpu = (
        "GPU results are in the rows that name a card."
        if any(one["run"]["gpu"] for one in results.values())
        else ("Nothing was measured on a GPU yet: `nox -s gpu` runs `meda_gpu` where there is one.")
    )
    return "\n".join([*lines, *make_losses(results), *make_runs(results), "", gpu]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    page = make_page(read_results(HERE / "results"))
    if not args.check:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/benchmarks.md is not what the results make; run `python benchmarks-hf/page.py`")


if __name__ == "__main__":
    main()
