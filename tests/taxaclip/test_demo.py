import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.packages import ROOT

EXAMPLES = ROOT / "packages" / "taxaclip" / "examples"


def run(name: str, folder: Path, *options: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), "--out", str(folder / "out"), *options]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_demo_writes_its_section_and_numbers(tmp_path: Path) -> None:
    run("demo.py", tmp_path, "--n", "960")
    section = (tmp_path / "out" / "section.html").read_text()
    assert section.count('src="data:image/png;base64,') == 5
    assert section.count("<ul>") == section.count("</ul>") >= 3 * 5  # a list for each rank of three trees
    assert "<b>" in section
    summary = json.loads((tmp_path / "out" / "result.json").read_text())["summary"]
    share = {name.partition(",")[0]: value.partition("%")[0] for name, value in summary.items()}
    assert float(share["right order"]) > 95
    assert float(share["right species"]) > 75


@pytest.mark.slow
def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = run("train.py", tmp_path, "--steps", "4")
    assert (tmp_path / "out" / "checkpoint-4" / "model.safetensors").is_file()
    again = run("train.py", tmp_path, "--steps", "4")
    numbers = [[line for line in text.splitlines() if "new images are right" in line] for text in (first, again)]
    assert len(numbers[0]) == 4
    assert numbers[0] == numbers[1]
