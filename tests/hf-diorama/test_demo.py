"""The demo counts what it says over the rows, and shows it."""

import json
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "packages" / "hf-diorama" / "examples" / "demo.py"


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(DEMO), *options], capture_output=True, text=True, check=False)


def test_demo_finds_every_row_again_and_every_edit_exact(tmp_path: Path) -> None:
    result = run_demo("--out", str(tmp_path), "--num-rows", "20")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["summary"]
    assert summary["rows equal when rendered again in reverse order"] == "20 of 20"
    exact, edits = summary["edits that changed pixels of one part only"].split(" of ")
    assert exact == edits != "0"
    assert (tmp_path / "section.html").read_text(encoding="utf-8").count("<img") == 3 * 3 + 6 + 6


def test_demo_refuses_too_few_rows_in_one_line(tmp_path: Path) -> None:
    result = run_demo("--out", str(tmp_path), "--num-rows", "2")
    assert result.returncode == 2
    assert "expected --num-rows of at least 20, got 2" in result.stderr
