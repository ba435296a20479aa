"""A process of a group that trains with an SSLTrainer; started by torch.distributed.run.

PYTHONPATH=tests python -m torch.distributed.run --nproc_per_node 2 tests/support/ssl_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from peft_ensemble import SSFConfig, SSLTrainer
from peft_ensemble.data import ViewCollator, with_ids
from peft_ensemble.fitting import build_member, load_processor
from peft_ensemble.members import MemberSpec
from support.tiny_ensembles import LABEL_NAMES, arguments, draw_images


def main() -> None:
    folder = Path(sys.argv[1])
    spec = MemberSpec(backbone=str(folder / "tiny-vit"), method=SSFConfig())
    for name in ("flexmatch", "freematch", "softmatch", "finessl"):
        trainer = SSLTrainer(
            name,
            draw_images(20, seed=1).remove_columns("label"),
            model=build_member(spec, LABEL_NAMES),
            args=arguments(
                max_steps=4, per_device_train_batch_size=3, remove_unused_columns=False, save_strategy="no"
            ),
            train_dataset=with_ids(draw_images(12, seed=0)),
            data_collator=ViewCollator(load_processor(spec), ("weak",)),
        )
        trainer.algorithm.threshold = 0.4  # so that something is selected in four steps
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model)
        state = {f"algorithm.{key}": value for key, value in trainer.algorithm.state_dict().items()}
        state |= {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}
        rank = dist.get_rank() if dist.is_initialized() else 0
        save_file(
            {key: value.clone().contiguous() for key, value in state.items()}, folder / f"{name}-{rank}.safetensors"
        )
    if dist.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
