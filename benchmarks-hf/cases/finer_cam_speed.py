"""CPU time and memory of FinerCAM against a forward, a full backward and the package grad-cam, as ratios.

Models of random weights (speed does not depend on them), 224 pixels, 200 classes, 3 references, gamma 0.6, Grad-CAM as
base map. Each round runs all ways once, in turning order, and the first is dropped; a ratio is the median over rounds
of CPU seconds on one thread, with its quartiles. `full backward`: the same maps by a forward with a graph and a
backward through the whole model, all parameters requiring gradients; `frozen backward`: none of them, but the input.
Memory: the weights and how far the resident set grows above what it is before, medians of five, and the growth alone;
measured in a fresh process with large blocks taken from the system and given back to it, so that what the allocator
keeps of freed blocks does not count.

grad-cam imports torchvision, of which it uses nothing here. It takes part if FOVEA_GRAD_CAM names a folder made by
    pip install --no-deps --target DIR grad-cam==1.5.5 ttach opencv-python-headless
and an empty module stands in for torchvision. Its five gammas are five calls, timed for one image of the ViT.
"""

import ctypes
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from finer_cam import FinerCAM, combine, select_references, upsample_maps

# Model, images, rounds: every way runs for more than a second.
SIZES = (("ViT-S/16", 1, 12), ("ResNet-50", 1, 12), ("DINOv2-S/14, pooled layer", 1, 12), ("ViT-S/16", 8, 5))
NUM_MEMORY_SAMPLES = 5
M_MMAP_THRESHOLD = -3  # glibc's number of the option
SIDE, NUM_LABELS, GAMMAS = 224, 200, [0.0, 0.3, 0.6, 1.0, 2.0]
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_labels": NUM_LABELS}
MODELS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {  # how to build it, target layer, leading tokens
    "ViT-S/16": (
        lambda: ViTForImageClassification(ViTConfig(**SMALL, intermediate_size=1536)),
        "vit.layers.11.layernorm_before",
        1,
    ),
    "ResNet-50": (
        lambda: ResNetForImageClassification(ResNetConfig(num_labels=NUM_LABELS)),
        "resnet.encoder.stages.3",
        0,
    ),
    "DINOv2-S/14, pooled layer": (
        lambda: Dinov2ForImageClassification(Dinov2Config(**SMALL, image_size=SIDE, patch_size=14)),
        "dinov2.layernorm",
        1,
    ),
}
AUTOGRAD_BAR, ANALYTIC_BAR, MEMORY_BAR = 1.25, 1.1, 1.2
SPEEDUPS = (  # what it is called, the two ways, and the ratio that is wanted at least
    ("full backward / ours", "full_backward", "finer_cam", 2.0),
    ("frozen backward / ours", "frozen_backward", "finer_cam", 1.3),
    ("grad-cam / ours", "grad_cam", "finer_cam", 2.5),
    ("grad-cam / ours, five gammas", "grad_cam_5", "finer_cam_5", 10.0),
)


class Logits(nn.Module):
    """Gives a tensor, which grad-cam needs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def to_maps(tensor: Tensor, num_prefix: int) -> Tensor:
    """Tokens as a square of maps."""
    if tensor.ndim == 4:
        return tensor
    tokens = tensor[:, num_prefix:].transpose(1, 2)
    side = int(tokens.shape[2] ** 0.5)
    return tokens.unflatten(2, (side, side))


def full_backward(model: nn.Module, layer: nn.Module, x: Tensor, num_prefix: int) -> Tensor:
    """Maps by one graph of the whole model and one backward through all of it."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = layer.register_forward_hook(keep)
    frozen = not next(model.parameters()).requires_grad
    logits = model(pixel_values=x.clone().requires_grad_(frozen)).logits
    handle.remove()
    target = logits.argmax(1)
    references = select_references(logits.detach(), target)
    objective = logits.gather(1, target[:, None])[:, 0] - 0.6 * logits.gather(1, references).mean(1)
    objective.sum().backward()
    gradient = to_maps(seen[0].grad, num_prefix)
    model.zero_grad()
    nothing = torch.zeros(len(x), 1, dtype=torch.long)
    raw = combine(to_maps(seen[0].detach(), num_prefix), gradient[:, None], nothing[:, 0], nothing, gamma=0.0)
    return upsample_maps(raw, (SIDE, SIDE))


def load_grad_cam() -> Any:
    """The package grad-cam, or None where it is not given."""
    folder = os.environ.get("FOVEA_GRAD_CAM")
    if not folder:
        return None
    stand_in, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    for name in ("Compose", "Normalize", "ToTensor"):
        setattr(transforms, name, object)
    stand_in.transforms = transforms  # type: ignore[attr-defined]
    hidden = {name: sys.modules.get(name) for name in ("torchvision", "torchvision.transforms")}
    sys.modules |= {"torchvision": stand_in, "torchvision.transforms": transforms}
    sys.path.append(folder)
    import pytorch_grad_cam

    sys.path.remove(folder)
    for name, module in hidden.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module
    return pytorch_grad_cam


def build_ways(name: str, batch_size: int, grad_cam: Any) -> tuple[dict[str, Callable[[], Any]], str, float]:
    """What is timed, each as a function without arguments, after it was checked; our path; MiB of the weights."""
    torch.manual_seed(0)
    make, layer_name, num_prefix = MODELS[name]
    model = make().eval()
    layer = model.get_submodule(layer_name)
    x = torch.randn(batch_size, 3, SIDE, SIDE)
    cam = FinerCAM(model, target_layer=layer_name)
    first = cam(x)
    torch.testing.assert_close(first.maps, full_backward(model, layer, x, num_prefix), atol=1e-3, rtol=0)
    second = cam(x)  # in closed form, if there is one
    torch.testing.assert_close(second.maps, first.maps, atol=1e-3, rtol=0)

    @torch.no_grad()
    def forward() -> None:
        model(pixel_values=x)

    def frozen_backward() -> None:
        model.requires_grad_(False)
        full_backward(model, layer, x, num_prefix)
        model.requires_grad_(True)

    ways: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "finer_cam": lambda: cam(x),
        "finer_cam_5": lambda: cam(x, gamma=GAMMAS),
        "full_backward": lambda: full_backward(model, layer, x, num_prefix),
        "frozen_backward": frozen_backward,
    }
    if grad_cam is not None:
        theirs = grad_cam.FinerCAM(
            Logits(model), [layer], reshape_transform=(lambda tensor: to_maps(tensor, num_prefix))
        )
        code = FinerCAM(model, target_layer=layer_name, weighting="reference-code")(x[:1])
        expected = torch.from_numpy(theirs(x[:1], alpha=0.6))
        torch.testing.assert_close(code.maps, expected, atol=1e-3, rtol=0)
        ways["grad_cam"] = lambda: theirs(x, alpha=0.6)
        if batch_size == 1 and name == "ViT-S/16":
            ways["grad_cam_5"] = lambda: [theirs(x, alpha=gamma) for gamma in GAMMAS]
    return ways, second.path, sum(weight.nbytes for weight in model.parameters()) / 2**20


def time_ways(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round, all in turn; the first round is dropped."""
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            start = time.process_time()
            way()
            samples[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in samples.items()}


def peak_mib(way: Callable[[], Any]) -> float:
    """How far the resident set grows above what it is before."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak
    before = _status("VmRSS")
    way()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_memory(name: str, batch_size: int) -> tuple[dict[str, list[float]], float]:
    """MiB by which each way lets the resident set grow, five times, in turn; MiB of the weights. In a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure_memory, name, batch_size).result()


def _measure_memory(name: str, batch_size: int) -> tuple[dict[str, list[float]], float]:
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**16)
    torch.set_num_threads(1)
    ways, _, weights = build_ways(name, batch_size, None)
    samples: dict[str, list[float]] = {way: [] for way in ("forward", "finer_cam", "full_backward")}
    for number in range(NUM_MEMORY_SAMPLES + 1):
        for way, values in samples.items():
            growth = peak_mib(ways[way])
            if number:  # the first warms up
                values.append(growth)
    return samples, weights


def compare(what: str, values: np.ndarray, bar: float | None = None, *, at_most: bool = False) -> dict[str, Any]:
    """A row: the median of ratios with its quartiles, the bar, and whether it was reached."""
    q1, ratio, q3 = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    row: dict[str, Any] = {"what": what, "ratio": ratio, "q1": q1, "q3": q3}
    if bar is not None:
        row |= {"bar": f"<= {bar}" if at_most else f">= {bar}", "reached": ratio <= bar if at_most else ratio >= bar}
    return row


def compare_times(samples: dict[str, list[float]], path: str) -> list[dict[str, Any]]:
    """The rows of CPU time of one model."""
    seconds = {way: np.array(values) for way, values in samples.items()}
    bar = ANALYTIC_BAR if path == "analytic" else AUTOGRAD_BAR
    rows = [
        compare("ours / forward", seconds["finer_cam"] / seconds["forward"], bar, at_most=True)
        | {"forward_cpu_s": float(np.median(seconds["forward"])), "samples": samples},
        compare("five gammas / one", seconds["finer_cam_5"] / seconds["finer_cam"]),
    ]
    for what, slow, fast, least in SPEEDUPS:
        if slow in seconds:
            rows.append(compare(what, seconds[slow] / seconds[fast], least))
        elif "grad_cam" not in seconds:
            rows.append({"what": what, "skipped": "FOVEA_GRAD_CAM names no folder with grad-cam"})
    return rows


def compare_memory(growth: dict[str, list[float]], weights: float) -> list[dict[str, Any]]:
    """The rows of memory of one model."""
    median, rows = np.median(growth["forward"]), []
    for way, label in (("finer_cam", "ours"), ("full_backward", "full backward")):
        bar = MEMORY_BAR if label == "ours" else None
        ratio = (weights + np.array(growth[way])) / (weights + median)
        rows.append(compare(f"memory, {label} / forward", ratio, bar, at_most=True))
        rows.append(compare(f"growth, {label} / forward", np.array(growth[way]) / median))
    rows[0]["samples"] = {"growth_mib": growth, "weights_mib": weights}
    return rows


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    grad_cam = load_grad_cam()
    rows: list[dict[str, Any]] = []
    for name, batch_size, num_rounds in SIZES[:1] if quick else SIZES:
        ways, path, _ = build_ways(name, batch_size, grad_cam)
        found = compare_times(time_ways(ways, 1 if quick else num_rounds), path)
        found += compare_memory(*measure_memory(name, batch_size))
        rows += [{"model": name, "batch_size": batch_size, "path": path, **row} for row in found]
    return rows
