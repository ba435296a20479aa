"""benchmarks-hf: a case is checked before it is timed, and figures come from the results alone."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks-hf"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def harness() -> Iterator[ModuleType]:
    yield load("harness")
    del sys.modules["harness"]


@pytest.fixture
def run(harness: ModuleType) -> Iterator[ModuleType]:
    yield load("run")
    del sys.modules["run"]


@pytest.fixture
def case(harness: ModuleType) -> ModuleType:
    module = ModuleType("case")
    module.__doc__ = "Sums a second.\n\nMore."
    module.calls = []
    module.CASE = harness.Timing(
        sizes=[{"n": 10, "bar": 1}, {"n": 1000}],
        setup=lambda n: list(range(n)),
        check=lambda inputs: module.calls.append("check"),
        ours=lambda inputs: module.calls.append("ours"),
        peer=lambda inputs: module.calls.append("peer"),
        unit="sums",
    )
    module.PLOT = {"x": "n", "y": "sums_per_s", "line": "kind", "low": "q1", "high": "q3"}
    return module


def test_case_is_checked_then_timed_in_alternating_rounds(run: ModuleType, case: ModuleType) -> None:
    rows = run.run_case(case, quick=True)
    assert len(rows) == 1
    assert case.calls == ["check", "peer", "ours", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert {"n", "sums_per_s", "q1", "q3", "ratio", "bar", "reached", "samples"} <= rows[0].keys()
    assert [len(values) for values in rows[0]["samples"].values()] == [3, 3]  # the first round is dropped


def test_failed_check_is_not_timed(run: ModuleType, harness: ModuleType, case: ModuleType) -> None:
    def wrong(inputs: object) -> None:
        raise AssertionError("sums differ")

    case.CASE = harness.Timing(sizes=[{}], setup=dict, check=wrong, ours=lambda inputs: case.calls.append("ours"))
    with pytest.raises(AssertionError, match="sums differ"):
        run.run_case(case, quick=True)
    assert case.calls == []


def test_results_say_what_they_depend_on(run: ModuleType, case: ModuleType, tmp_path: Path) -> None:
    path = run.write_results(
        "sums", case, [{"n": 1, "samples": {"ours": [0.5]}}], tmp_path, {"commit": "c0ffee", "dirty": False}
    )
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["schema"], result["case"], result["about"]) == (1, "sums", "Sums a second.")
    assert {"versions", "cpu", "cores", "threads", "time"} <= result["run"].keys()
    assert (result["run"]["commit"], result["run"]["dirty"]) == ("c0ffee", False)
    assert result["rows"] == [{"n": 1, "samples": {"ours": [0.5]}}]
    assert [path.name for path in tmp_path.iterdir()] == ["sums.json"]


def test_table_leaves_out_raw_samples(run: ModuleType) -> None:
    table = run.format_table([{"n": 1, "speed": 123.456, "samples": []}, {"n": 10, "bar": 2}])
    assert table.splitlines() == [
        "| n   | speed | bar |",
        "| --- | ---   | --- |",
        "| 1   | 123.5 |     |",
        "| 10  |       | 2   |",
    ]


def test_unknown_case_gets_the_list_of_cases() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "nothing"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "diorama_render" in result.stderr.splitlines()[-1]


def test_result_of_a_peer_that_is_not_here_stays() -> None:
    path = FOLDER / "results" / "taxaclip_pybioclip.json"
    before = path.read_bytes()
    command = [sys.executable, str(FOLDER / "run.py"), "taxaclip_pybioclip"]
    environment = {name: value for name, value in os.environ.items() if name != "FOVEA_PYBIOCLIP"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "taxaclip_pybioclip: nothing was measured or written" in result.stdout
    assert path.read_bytes() == before


def test_figure_is_drawn_from_the_results_file_alone(tmp_path: Path) -> None:
    rows = [{"n": n, "kind": kind, "y": n, "a": 0, "b": 9} for n in (1, 2) for kind in ("x", "z")]
    plot = {"x": "n", "y": "y", "line": "kind", "low": "a", "high": "b"}
    (tmp_path / "sums.json").write_text(json.dumps({"about": "Sums", "plot": plot, "rows": rows}), encoding="utf-8")
    rows = [{"n": 1, "y": 2}, {"n": 2, "y": 1}, {"n": 3, "other": 1}]
    one_line = {"about": "One line", "plot": {"x": "n", "y": "y"}, "rows": rows}
    (tmp_path / "line.json").write_text(json.dumps(one_line), encoding="utf-8")
    (tmp_path / "plain.json").write_text(
        json.dumps({"about": "No figure", "plot": None, "rows": []}), encoding="utf-8"
    )
    command = [sys.executable, str(FOLDER / "plot.py"), "--results", str(tmp_path), "--figures", str(tmp_path)]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["line.png", "sums.png"]
