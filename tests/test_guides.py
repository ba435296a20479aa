"""Guides quote the result files, and the job of `scale-out` runs on two processes as it does on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import markdown_examples

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "docs" / "guides"


def read_rows(case: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / f"benchmarks-hf/results/{case}.json").read_text())["rows"]
    return rows


def test_points_that_calibration_restores_are_those_of_the_results() -> None:
    gains = {
        row["experiment"]: 100 * row["gain"]
        for row in read_rows("partial_tune_claims")
        if row["claim"] == "ALG restores absent accuracy"
    }
    text = (GUIDES / "keep-absent-classes.md").read_text(encoding="utf-8")
    assert f"{gains['digits']:.1f} points of absent accuracy on digits, {gains['creatures']:.1f} on creatures" in text


def test_points_that_half_a_cache_loses_are_those_of_the_results() -> None:
    rows = read_rows("meda_quality")
    full = {row["mode"]: 100 * row["exact_match"] for row in rows if row["policy"] == "full cache"}
    half = {
        row["mode"]: 100 * row["exact_match"]
        for row in rows
        if row["policy"] == "balanced" and row["keep_ratio"] == 0.5
    }
    lost = sorted(full[mode] - half[mode] for mode in half)
    text = (GUIDES / "serve-long-contexts.md").read_text(encoding="utf-8")
    assert f"loses {lost[0]:.1f} to {lost[-1]:.1f} points of {full['question-aware']:.0f}" in text


def test_time_of_reading_a_prompt_is_that_of_the_results() -> None:
    slowdowns = [
        row["slowdown"] for row in read_rows("meda_compress") if row["formulation"] not in ("dynamic", "naive")
    ]
    text = (GUIDES / "serve-long-contexts.md").read_text(encoding="utf-8")
    assert f"reading the prompt takes {min(slowdowns):.1f} to {max(slowdowns):.1f} times as long" in text


@pytest.mark.slow
@pytest.mark.loopback
def test_embedding_job_runs_on_two_processes(tmp_path: Path) -> None:
    blocks = markdown_examples.read_blocks((GUIDES / "scale-out.md").read_text(encoding="utf-8"))
    script = tmp_path / "embed.py"
    script.write_text("\n".join(block.code for block in blocks[:3]), encoding="utf-8")
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    options = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    result = subprocess.run(
        [sys.executable, *launch, *options, str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "96 rows, 128 numbers each" in result.stdout
    assert len(list((tmp_path / "embeddings").glob("*.parquet"))) == 6
