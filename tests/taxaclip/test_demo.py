import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.packages import ROOT

DEMO = ROOT / "packages" / "taxaclip" / "examples" / "demo.py"


@pytest.mark.slow
def test_demo_writes_its_section_and_numbers(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--out", str(tmp_path / "demo"), "--steps", "10"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    section = (tmp_path / "demo" / "section.html").read_text()
    assert section.count('src="data:image/png;base64,') == 2
    summary = json.loads((tmp_path / "demo" / "result.json").read_text())["summary"]
    assert {name.partition(",")[0] for name in summary} >= {
        "right order",
        "right family",
        "right genus",
        "right species",
    }
