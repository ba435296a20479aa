"""docs/benchmarks.md holds the numbers of the result files and no others."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks-hf"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("page", FOLDER / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("comparisons", None)


def test_committed_page_is_what_the_results_make() -> None:
    command = [sys.executable, str(FOLDER / "page.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_package_has_a_side_and_every_comparison_a_case(page: ModuleType) -> None:
    dists = sorted(path.parent.name for path in FOLDER.parent.glob("packages/*/pyproject.toml"))
    assert [side.dist for side in page.comparisons.SIDES] == dists
    cases = {one.case for side in page.comparisons.SIDES for one in side.comparisons}
    assert cases <= {path.stem for path in (FOLDER / "cases").glob("*.py")}


def test_ratios_are_peer_over_ours_with_quartiles_in_order(page: ModuleType) -> None:
    row = {"slowdown_q1": 1.6, "slowdown": 2.0, "slowdown_q3": 4.0, "n": 1000}
    options = {"case": "c", "what": "work", "peer": "them", "points": ("n",)}
    columns = ("slowdown", "slowdown_q1", "slowdown_q3")
    inverse = page.Comparison(columns=columns, inverse=True, **options)
    assert page.make_rows({"rows": [row]}, inverse) == [("work; n 1,000", "them", "0.5 (0.25 to 0.625)", 0.5)]
    plain = page.Comparison(columns=columns, **options)
    assert page.make_rows({"rows": [row]}, plain)[0][2] == "2 (1.6 to 4)"


def test_peer_in_a_row_of_its_own_is_found_at_the_same_point(page: ModuleType) -> None:
    rows = [{"way": way, "n": n, "s": s} for way, n, s in [("a", 1, 2.0), ("b", 1, 6.0), ("a", 2, 4.0), ("b", 2, 2.0)]]
    options = {"columns": ("s",), "points": ("n",), "where": {"way": "a"}, "against": {"way": "b"}}
    found = page.make_rows({"rows": rows}, page.Comparison(case="c", what="w", peer="p", **options))
    assert [row[2:] for row in found] == [("3", 3.0), ("0.5", 0.5)]


def test_what_was_skipped_or_not_measured_says_so(page: ModuleType) -> None:
    one = page.Comparison(case="c", what="w", peer="p", where={"what": "x"})
    assert page.make_rows({"rows": [{"what": "x", "skipped": "no network"}]}, one)[0][2] == "skipped: no network"
    assert page.make_rows(None, one)[0][2] == "not measured yet: `c`"


def test_losses_are_all_rows_below_one(page: ModuleType) -> None:
    results = page.read_results(FOLDER / "results")
    text = page.make_page(results)
    above, _, below = text.partition("## What we lose")
    rows = [row for side in page.comparisons.SIDES for one in side.comparisons if one.case in results
            for row in page.make_rows(results[one.case], one)]  # fmt: skip
    lost = [row for row in rows if row[3] < 1]
    assert lost
    assert len(lost) < len(rows)
    table = below.partition("## Where")[0]
    assert sum(line.startswith("| ") for line in table.splitlines()) == len(lost) + 1
    assert all(f"| {row[0]} | {row[1]} | {row[2]} |" in table for row in lost)
    assert all(f"| {row[0]} | {row[1]} | {row[2]} |" in above for row in rows)
