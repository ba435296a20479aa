"""LOLSGD, and a sweep over sharded batches, in this process: for the test that two processes give what one gives.

python -m torch.distributed.run --nproc-per-node 2 -m support.partial_distributed FOLDER
"""

import sys
from pathlib import Path

from support import offline

if __name__ == "__main__":
    offline.enter()  # before torch and transformers are imported

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from partial_tune import SweepState
from support.partial_models import build_resnet, image_rows
from support.partial_training import PARTITION, make_trainer


def run(folder: Path) -> None:
    """Writes the weights that this process ends with, and in the main process the numbers of the sweep."""
    torch.manual_seed(0)
    model = build_resnet()
    rows = image_rows([0, 2, 3, 5] * 4, size=16)
    options = {"method": "lolsgd", "workers": 4, "rounds": 2, "drop": 1, "max_steps": 4, "lr_scheduler_type": "cosine"}
    make_trainer(folder, model, rows, save_strategy="epoch", **options).train()
    accelerator = Accelerator(cpu=True)
    name = f"weights-{accelerator.num_processes}-{accelerator.process_index}.safetensors"
    save_file(model.state_dict(), folder / name)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(6, generator=generator), index % 6) for index in range(23)]  # 23: the last batch is filled up
    state = SweepState(PARTITION)
    for logits, labels in accelerator.prepare(DataLoader(data, batch_size=4)):  # type: ignore[arg-type]
        state.update(logits, labels, accelerator)
    if accelerator.is_main_process:
        result = state.result()
        summary = f"{len(state)} {result.ausuc!r} {result.gamma_star!r} {result.operating_point('balanced').overall!r}"
        (folder / f"sweep-{accelerator.num_processes}.txt").write_text(summary)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
