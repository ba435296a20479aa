"""CPU time and memory of FinerCAM against a forward, a full backward and the package grad-cam, as ratios.

Models of random weights (speed does not depend on them), 224 pixels, 200 classes, 3 references, gamma 0.6, Grad-CAM as
base map. Each round runs all ways once, in turning order, the first is dropped; ratios are medians over rounds of
CPU seconds on one thread. `full backward`: the same maps by a forward with a graph and a backward through the whole
model, with all parameters requiring gradients, or with frozen ones and an input that requires one. Memory: growth
of the resident set over its size before, at its peak.

grad-cam imports torchvision, of which it uses nothing here. It takes part if FOVEA_GRAD_CAM names a folder made by
    pip install --no-deps --target DIR grad-cam==1.5.5 ttach opencv-python-headless
and an empty module stands in for torchvision; without it its columns are missing. Its five gammas are five calls.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable
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
ROUNDS = {1: 7, 8: 3}


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


def build_ways(name: str, batch_size: int, grad_cam: Any) -> tuple[dict[str, Callable[[], Any]], float]:
    """Everything that is timed, each as a function without arguments, after it was checked; and MiB of the weights."""
    torch.manual_seed(0)
    make, layer_name, num_prefix = MODELS[name]
    model = make().eval()
    layer = model.get_submodule(layer_name)
    x = torch.randn(batch_size, 3, SIDE, SIDE)
    cam = FinerCAM(model, target_layer=layer_name)
    first = cam(x)
    torch.testing.assert_close(first.maps, full_backward(model, layer, x, num_prefix), atol=1e-3, rtol=0)
    torch.testing.assert_close(cam(x).maps, first.maps, atol=1e-3, rtol=0)

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
    return ways, sum(weight.nbytes for weight in model.parameters()) / 2**20


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


def run(*, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    grad_cam, rows = load_grad_cam(), []
    for name in list(MODELS)[:1] if quick else MODELS:
        for batch_size in (1,) if quick else (1, 8):
            ways, weights = build_ways(name, batch_size, grad_cam)
            samples = time_ways(ways, 1 if quick else ROUNDS[batch_size])
            growth = {way: peak_mib(ways[way]) for way in ("forward", "finer_cam", "full_backward")}

            def ratio(numerator: str, denominator: str, samples: dict[str, list[float]] = samples) -> float:
                if numerator not in samples:
                    return float("nan")
                return float(np.median(np.array(samples[numerator]) / np.array(samples[denominator])))

            rows.append(
                {
                    "model": name,
                    "batch_size": batch_size,
                    "ours / forward": ratio("finer_cam", "forward"),
                    "five gammas / one": ratio("finer_cam_5", "finer_cam"),
                    "full backward / ours": ratio("full_backward", "finer_cam"),
                    "frozen backward / ours": ratio("frozen_backward", "finer_cam"),
                    "grad-cam / ours": ratio("grad_cam", "finer_cam"),
                    "grad-cam / ours, five gammas": ratio("grad_cam_5", "finer_cam_5"),
                    "memory, ours / forward": (weights + growth["finer_cam"]) / (weights + growth["forward"]),
                    "memory, full / forward": (weights + growth["full_backward"]) / (weights + growth["forward"]),
                    "growth, ours / forward": growth["finer_cam"] / growth["forward"],
                    "growth, full / forward": growth["full_backward"] / growth["forward"],
                    "forward_cpu_s": float(np.median(samples["forward"])),
                    "samples": {**samples, "growth_mib": growth, "weights_mib": weights},
                }
            )
    return rows
