"""Three training steps with accelerate, on as many processes as it is started with; the first one saves the weights.

Started by test_training.py of prompt-cam, twice, with RANK and WORLD_SIZE as torchrun sets them.
"""

import sys

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from prompt_cam import PromptCAMConfig, get_prompt_cam_model
from support.planted import NUM_CLASSES, PlantedDataset, build_random_vit

GLOBAL_BATCH = 16


def main(out: str) -> None:
    accelerator = Accelerator(cpu=True)
    model = get_prompt_cam_model(build_random_vit(), PromptCAMConfig(num_classes=NUM_CLASSES, prompt_dropout=0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loader = torch.utils.data.DataLoader(PlantedDataset(48, seed=0), GLOBAL_BATCH // accelerator.num_processes)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        optimizer.zero_grad()
        accelerator.backward(model(**batch).loss)
        optimizer.step()
    if accelerator.is_main_process:
        save_file(accelerator.unwrap_model(model).state_dict(), out, {"processes": str(accelerator.num_processes)})
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
