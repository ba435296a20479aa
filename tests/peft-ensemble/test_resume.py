"""A run that is killed at any time and started again ends with the files of an uninterrupted one."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.tiny_ensembles import save_backbones

TESTS = Path(__file__).resolve().parents[1]


def start(folder):
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "support.tiny_ensembles", str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_for(process, folder, pattern):
    """Until a file of this pattern is there."""
    deadline = time.monotonic() + 240
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"no {pattern} in {sorted(folder.rglob('*'))}"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_runs_end_with_equal_files(tmp_path):
    save_backbones(tmp_path)
    ensemble = tmp_path / "ensemble"
    finish(start(tmp_path))
    expected = hashes(ensemble)
    shutil.rmtree(ensemble)
    # In the first member behind a checkpoint, in the second, in the student.
    for pattern in (
        "members/*.trainer/checkpoint-2/trainer_state.json",
        "members/*/metrics.json",
        "students/*.trainer/checkpoint-1*/trainer_state.json",
    ):
        process = start(tmp_path)
        wait_for(process, ensemble, pattern)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert hashes(ensemble) != expected
    finish(start(tmp_path))
    assert hashes(ensemble) == expected
