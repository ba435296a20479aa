"""A run that is killed at any time and started again ends with the files of an uninterrupted one."""

import hashlib
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest

from support import tiny_ensembles

# Processes of their own, forked from one that has imported everything: killing one takes nothing else down.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["support.tiny_ensembles"])


def start(folder: Path) -> multiprocessing.Process:
    process = CONTEXT.Process(target=tiny_ensembles.run, args=(folder,))
    process.start()
    return process


def finish(process):
    process.join()
    assert process.exitcode == 0


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kill_when_there(process, folder, pattern):
    """SIGKILL as soon as a file of this pattern is there."""
    while not list(folder.glob(pattern)):
        assert process.is_alive(), f"ended without {pattern}"
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9


@pytest.mark.slow
def test_killed_runs_end_with_equal_files(tmp_path):
    tiny_ensembles.save_backbones(tmp_path)
    ensemble = tmp_path / "ensemble"
    finish(start(tmp_path))
    expected = hashes(ensemble)
    assert not any("trainer" in name or name.endswith(".part") for name in expected)
    shutil.rmtree(ensemble)
    # In the first member behind a checkpoint, in the second, in the student.
    for pattern in (
        "members/*.trainer/checkpoint-2/trainer_state.json",
        "members/*/metrics.json",
        "students/*.trainer/checkpoint-*/trainer_state.json",
    ):
        kill_when_there(start(tmp_path), ensemble, pattern)
        assert hashes(ensemble) != expected
    finish(start(tmp_path))
    assert hashes(ensemble) == expected
