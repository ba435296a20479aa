"""Two gloo processes give what one gives: LOLSGD's weights bit for bit, and the sweep over sharded batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import partial_distributed

TESTS = Path(__file__).parents[1]


def launch_two(folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(29500 + os.getpid() % 1000), "-m", "support.partial_distributed", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.loopback
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    partial_distributed.run(tmp_path)
    launch_two(tmp_path)
    one, first, second = (load_file(tmp_path / f"weights-{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert any("running_mean" in name for name in one)
    for name, value in one.items():
        assert torch.equal(value, first[name]), name
        assert torch.equal(value, second[name]), name
    assert (tmp_path / "sweep-2.txt").read_text() == (tmp_path / "sweep-1.txt").read_text()
    assert (tmp_path / "sweep-1.txt").read_text().startswith("23 ")
