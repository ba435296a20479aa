"""A run that is killed at any time and started again ends with the files of an uninterrupted one."""

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peft_ensemble import MemberSpec, SSFConfig, storage
from peft_ensemble.fitting import build_member
from support import tiny_ensembles

TESTS = Path(__file__).resolve().parents[1]

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
    # On the way to the first round, in the one candidate that is left, in selection, labelling, and in the student.
    for pattern in (
        "members/*.trainer/checkpoint-2/trainer_state.json",
        "members/*.trainer/checkpoint-6/trainer_state.json",
        "members/*/metrics.json",
        "predictions/*/*.safetensors",
        "pseudo_labels/*.parquet",
        "students/*.trainer/checkpoint-*/trainer_state.json",
    ):
        kill_when_there(start(tmp_path), ensemble, pattern)
        assert hashes(ensemble) != expected
    finish(start(tmp_path))
    assert hashes(ensemble) == expected


def test_what_a_kill_behind_the_last_write_leaves_is_cleared(tmp_path):
    tiny_ensembles.save_backbones(tmp_path)
    tiny_ensembles.run(tmp_path)
    expected = hashes(tmp_path / "ensemble")
    for folder in [*(tmp_path / "ensemble").glob("members/*"), *(tmp_path / "ensemble").glob("students/*")]:
        left = folder.with_name(folder.name + ".trainer") / "checkpoint-8"
        left.mkdir(parents=True)
        (left / "trainer_state.json").write_text("{}")
    tiny_ensembles.run(tmp_path)
    assert hashes(tmp_path / "ensemble") == expected


def test_an_adapter_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    tiny_ensembles.save_backbones(tmp_path)
    spec = MemberSpec(backbone=str(tmp_path / "tiny-vit"), method=SSFConfig())
    model, folder = build_member(spec, tiny_ensembles.LABEL_NAMES), tmp_path / "member"
    monkeypatch.setattr(storage, "write_text", lambda *args: sys.exit("killed"))  # behind the weights, before the card
    with pytest.raises(SystemExit):
        storage.save_adapter(model, folder, "card", {"global_step": 1.0})
    assert not folder.exists()
    monkeypatch.undo()
    storage.save_adapter(model, folder, "card", {"global_step": 1.0})
    assert storage.is_saved(folder)
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert not folder.with_name("member.part").exists()


@pytest.mark.slow
@pytest.mark.loopback
def test_two_processes_end_with_one_folder(tmp_path):
    tiny_ensembles.save_backbones(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(TESTS / "support" / "ensemble_processes.py")
    done = subprocess.run(
        [*command, script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = hashes(tmp_path / "ensemble")
    assert not any("trainer" in name or name.endswith(".part") for name in files)
    assert sum(name.endswith("adapter_model.safetensors") for name in files) == 2  # a member and a student
    first, second = (json.loads((tmp_path / f"targets-{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == 30
    assert first == second
