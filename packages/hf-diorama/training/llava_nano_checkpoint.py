"""Checkpoints of a training run as one safetensors file, so that an interrupted run continues where it was."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save_checkpoint(
    path: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Writes weights, optimizer state, steps done and seconds spent; the file appears whole or not at all."""
    tensors = {f"{name}/{key}": x for name, module in modules.items() for key, x in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": x for key, x in state.items()}
    partial = path.with_suffix(".partial")
    metadata = {"step": str(step), "seconds": str(seconds)}
    save_file({key: x.contiguous().clone() for key, x in tensors.items()}, partial, metadata)
    partial.replace(path)


def load_checkpoint(
    path: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Restores what `save_checkpoint` wrote; returns steps done and seconds spent, zeros if there is no file."""
    if not path.exists():
        return 0, 0.0
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in (*modules, "optimizer")}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118 (not a dict)
            part, key = name.split("/", 1)
            states[part][key] = file.get_tensor(name)
    for name, module in modules.items():
        module.load_state_dict(states[name])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in states["optimizer"].items():
        index, key = name.split("/")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), float(metadata["seconds"])


def one_cycle(step: int, steps: int, warmup: float = 0.05, cooldown: float = 1.0) -> float:
    """Returns the factor of the learning rate: linear warmup, then constant, then a cosine to 0 over the last part."""
    done = step / steps
    if done < warmup:
        return (step + 1) / (warmup * steps)
    fraction = max(0.0, (done - (1 - min(cooldown, 1 - warmup))) / min(cooldown, 1 - warmup))
    return 0.5 + 0.5 * float(torch.cos(torch.tensor(fraction * torch.pi)))
