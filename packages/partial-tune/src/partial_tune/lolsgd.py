"""Leave-out local SGD: which classes a worker leaves out, its batches, and the average of the workers' weights.

From "Holistic Transfer" (arXiv 2311.01420), built as described there; see docs/papers/holistic-transfer.md for what is
not verified.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

LoraAverage = Literal["freeze_a", "svd", "naive"]


def derive_seed(seed: int, *counters: int) -> int:
    """Returns a seed of 63 bits from a seed and counters: the same for any order of rounds, workers and processes."""
    text = ",".join(map(str, (seed, *counters)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def default_drop(num_seen: int) -> int:
    """Returns how many classes a worker leaves out by default: 30 percent, at least one, not all."""
    return min(num_seen - 1, max(1, round(0.3 * num_seen)))


def draw_classes(seen: Sequence[int], drop: int, *, seed: int, round_id: int, worker: int) -> tuple[int, ...]:
    """Returns the classes that a worker trains on in a round: all seen ones but `drop`, drawn at random.

    Args:
        seen (`Sequence[int]`): ids of the seen classes.
        drop (`int`): classes to leave out, from 0 (plain local SGD) to all but one.
        seed, round_id, worker (`int`): what the draw depends on, and nothing else.

    Raises:
        ValueError: if `drop` is out of range.
    """
    if not 0 <= drop <= len(seen) - 1:
        raise ValueError(f"Expected `drop` from 0 to {len(seen) - 1} for {len(seen)} seen classes, got {drop}.")
    generator = torch.Generator().manual_seed(derive_seed(seed, round_id, worker, 0))
    order = torch.randperm(len(seen), generator=generator).tolist()
    return tuple(sorted(seen[index] for index in order[drop:]))


def draw_batches(
    labels: np.ndarray, classes: Sequence[int], count: int, batch_size: int, *, seed: int, round_id: int, worker: int
) -> list[list[int]]:
    """Returns `count` batches of sample ids of these classes: permutation after permutation, all of full size.

    Raises:
        ValueError: if no sample has one of the classes.
    """
    ids = np.flatnonzero(np.isin(labels, classes))
    if not len(ids):
        raise ValueError(f"Expected samples of the classes {list(classes)} for worker {worker}, got none.")
    generator = torch.Generator().manual_seed(derive_seed(seed, round_id, worker, 1))

    def endless() -> Iterator[int]:
        while True:
            yield from ids[torch.randperm(len(ids), generator=generator).numpy()].tolist()

    stream = endless()
    return [[next(stream) for _ in range(batch_size)] for _ in range(count)]


def lora_pairs(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Returns the factors (A, B) of every active LoRA adapter, by module and adapter name."""
    pairs = {}
    for name, module in model.named_modules():
        down, up = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if isinstance(down, nn.ModuleDict) and isinstance(up, nn.ModuleDict):
            for adapter in getattr(module, "active_adapters", list(down)):
                if adapter in down:
                    pairs[f"{name}.{adapter}"] = (down[adapter].weight, up[adapter].weight)
    return pairs  # type: ignore[return-value]


def freeze_lora_a(model: nn.Module) -> None:
    """Makes all A factors constant: then the mean of the products B A is the product of the means, exactly."""
    for down, _ in lora_pairs(model).values():
        down.requires_grad_(False)


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns what local training changes: trainable parameters and all buffers, such as BatchNorm's statistics."""
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {**trainable, **dict(model.named_buffers())}


class ModelAverage:
    """The mean of the states of several workers, one at a time: a running float64 sum, not a copy for each worker.

    Floating-point parameters and buffers are averaged; integer buffers are those of worker 0.

    Args:
        model (`nn.Module`): the working copy, whose state is added, and overwritten by `load`.
        num_workers (`int`): workers in a round, over all processes.
        lora_average (`str`, *optional*):
            `"svd"` averages the products B A and factors the mean to the rank again; otherwise A and B are averaged
            apart, which is exact if A is frozen (`"freeze_a"`) and an approximation if not (`"naive"`).
    """

    def __init__(self, model: nn.Module, num_workers: int, lora_average: LoraAverage = "freeze_a") -> None:
        self.model, self.num_workers = model, num_workers
        self._pairs = lora_pairs(model) if lora_average == "svd" else {}
        if any(down.ndim != 2 for down, _ in self._pairs.values()):
            raise ValueError('Expected LoRA on linear layers for `lora_average="svd"`; use "freeze_a" or "naive".')
        factors = {id(factor) for pair in self._pairs.values() for factor in pair}
        state = {name: value for name, value in named_state(model).items() if id(value) not in factors}
        self._names = [name for name, value in state.items() if value.is_floating_point()]
        self._sums = {name: torch.zeros_like(state[name], dtype=torch.float64) for name in self._names}
        self._products = {
            name: torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64, device=up.device)
            for name, (down, up) in self._pairs.items()
        }
        self._integers = {name: value.clone() for name, value in state.items() if not value.is_floating_point()}

    @torch.no_grad()
    def add(self, worker: int) -> None:
        """Adds the model's present state as that of one worker."""
        state = named_state(self.model)
        for name in self._names:
            self._sums[name] += state[name].double()
        for name, (down, up) in self._pairs.items():
            self._products[name] += up.double() @ down.double()
        if worker == 0:
            self._integers = {name: state[name].clone() for name in self._integers}

    def reduce(self, accelerator: Any) -> None:
        """Sums over all processes; worker 0 is in process 0."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import broadcast

        for sums in (self._sums, self._products):
            for name in sums:
                sums[name] = accelerator.reduce(sums[name], reduction="sum")
        self._integers = {name: broadcast(value, from_process=0) for name, value in self._integers.items()}

    @torch.no_grad()
    def load(self) -> None:
        """Writes the mean into the model."""
        state = named_state(self.model)
        for name in self._names:
            state[name].copy_(self._sums[name] / self.num_workers)
        for name, value in self._integers.items():
            state[name].copy_(value)
        for name, (down, up) in self._pairs.items():
            new_up, new_down = factor_product(self._products[name] / self.num_workers, down.shape[0])
            up.copy_(new_up)
            down.copy_(new_down)


def factor_product(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns B of shape `(out, rank)` and A of shape `(rank, in)` whose product is the best of that rank."""
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    root = values[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    missing = rank - len(root)
    return torch.nn.functional.pad(up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))
