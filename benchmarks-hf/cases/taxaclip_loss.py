"""Peak memory and time of the contrastive loss with its gradients: in tiles against all logits at once.

Each point runs in a process of its own; its peak is the kernel's high-water mark, set back before the call, less what
was resident then.
"""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from taxaclip import chunked_contrastive_loss, contrastive_loss

DIM = 512
LOSSES = {"dense": contrastive_loss, "tiles": chunked_contrastive_loss}


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _measure(queue: Any, kind: str, batch_size: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(batch_size, DIM, generator=generator).requires_grad_() for _ in range(2))
    scale = torch.tensor(2.0, requires_grad=True)
    LOSSES[kind](image[:64], text[:64], scale).backward()  # what the first call of anything costs
    image.grad = text.grad = scale.grad = None
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status_mib("VmRSS"), time.perf_counter()
    loss = LOSSES[kind](image, text, scale)
    loss.backward()
    seconds, peak = time.perf_counter() - started, _status_mib("VmHWM") - before
    queue.put({"peak_mib": peak, "seconds": seconds, "loss": loss.item(), "grad": image.grad.norm().item()})


def measure(kind: str, batch_size: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, kind, batch_size))
    process.start()
    result: dict[str, float] = queue.get()
    process.join()
    return result


def run(*, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for batch_size in (512,) if quick else (1024, 2048, 4096, 8192):
        results = {kind: measure(kind, batch_size) for kind in LOSSES}
        for name in ("loss", "grad"):
            left, right = (results[kind][name] for kind in LOSSES)
            assert abs(left - right) <= 1e-4 * abs(left), f"{name} differs: {left} and {right}"
        for kind, result in results.items():
            costs = {name: result[name] for name in ("peak_mib", "seconds")}
            ratio = results["dense"]["peak_mib"] / result["peak_mib"]
            rows.append({"batch_size": batch_size, "loss": kind, **costs, "memory_ratio": ratio})
    return rows


PLOT = {"x": "batch_size", "y": "peak_mib", "line": "loss"}
