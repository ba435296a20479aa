"""A run of `run_benchmark` with adapters on a tiny model, on as many processes as it is started with.

Started by test_distributed.py of hf-ava-bench, twice, with RANK and WORLD_SIZE as torchrun sets them.
"""

import sys
from pathlib import Path

import torch

from hf_ava_bench import Fingerprint, run_benchmark
from hf_ava_bench.runner.encoders import KnownEncoder
from hf_ava_bench.runner.profiles import Profile
from hf_ava_bench.runner.tiny import build_tiny_llm

PROFILE = Profile(
    name="two", epochs=1, localization_epochs=1, batch_size=4, lora_r=4, lora_alpha=8, lora_dropout=0.0, n_train=12,
    n_test=7, system="", learning_rate=1e-2, closed_sets="loglik",
)  # fmt: skip


def run(out: str | Path) -> Fingerprint:
    """Returns the fingerprint of two abilities, one with options and one whose answers are written."""
    return run_benchmark(
        KnownEncoder("patch-colour"), build_tiny_llm(32, 2), out, ["scene", "counting"], source="mini",
        profile=PROFILE, image_size=32, controls=("blind",), progress=False,
    )  # fmt: skip


def main(out: str) -> None:
    fingerprint = run(out)
    # Every process has the result, whichever wrote it.
    assert Fingerprint.load(Path(out) / "fingerprint.json") == fingerprint
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
