"""A run on two processes is the run on one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_ava_bench import Fingerprint
from support import ava_run

ROOT = Path(__file__).parents[2]


@pytest.mark.loopback
def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    processes = []
    for rank in ("0", "1"):
        command = [sys.executable, "-W", "ignore", "-m", "support.ava_run", str(tmp_path / "two" / "run")]
        environment = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    one = ava_run.run(tmp_path / "one" / "run")
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    two = Fingerprint.load(tmp_path / "two" / "run" / "fingerprint.json")
    for name, result in one.abilities.items():
        other = two.abilities[name]
        assert other.values == pytest.approx(result.values)
        assert other.controls == pytest.approx(result.controls)
        for file in ("connector.safetensors", f"{name}/adapter_model.safetensors"):
            left, right = (load_file(tmp_path / which / "run" / "heads" / name / file) for which in ("one", "two"))
            assert left.keys() == right.keys()
            for key, weight in left.items():
                assert_close(right[key], weight, atol=2e-4, rtol=1e-4)
