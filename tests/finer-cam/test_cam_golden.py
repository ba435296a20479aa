"""Every golden map of grad-cam 1.5.5, within 1e-5."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finer_cam import FinerCAM, combine, upsample_maps

Golden = tuple[nn.Module, dict[str, Tensor], str]
BASES = {"gradcampp": "gradcam++"}
TOLERANCE = 1e-5


def options_of(name: str) -> tuple[dict[str, Any], Any]:
    """Options and target of a golden map, read from its name."""
    kind, _, rest = name.partition(".")
    if not kind.startswith("finer_"):
        return {"method": BASES.get(kind, kind), "gamma": 0.0}, {"argmax": None, "fixed": [3, 7]}[rest]
    options: dict[str, Any] = {"method": kind.removeprefix("finer_"), "weighting": "reference-code"}
    options["gamma"] = float(re.search(r"(?:alpha|gamma)([\d.]*\d)", rest)[1])
    if rest.endswith("ranks1"):
        options["num_references"] = 1
    if rest.startswith("paper_uniform"):
        options["weighting"] = "uniform"
    if rest.startswith("explicit"):
        return {**options, "references": [0, 9]}, 3
    return options, 5 if rest.startswith("target_idx5") else None


def test_all_golden_maps(golden: Golden) -> None:
    model, arrays, layer = golden
    names = [name for name, value in arrays.items() if value.shape == (2, 48, 64)]
    assert len(names) == 56
    errors = {}
    for name in names:
        options, target = options_of(name)
        out = FinerCAM(model, target_layer=layer, **options)(pixel_values=arrays["pixel_values"], target=target)
        errors[name] = float((out.maps - arrays[name]).abs().max())
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}


def test_activations_gradients_and_logits(golden: Golden) -> None:
    model, arrays, layer = golden
    cam = FinerCAM(model, target_layer=layer, method="layercam", gamma=0)  # LayerCAM keeps gradients
    out = cam(pixel_values=arrays["pixel_values"], target=[list(range(12))] * 2)
    torch.testing.assert_close(out.logits, arrays["logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(out.evidence.activations, arrays["activation"], atol=2e-5, rtol=0)
    gradients = out.evidence.parts[:, out.evidence.main]
    torch.testing.assert_close(gradients, arrays["grad_per_class"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
def test_published_objective_from_gradients_alone(golden: Golden, method: str) -> None:
    _, arrays, _ = golden
    target = arrays["logits"].argmax(dim=1)
    distance = (arrays["logits"] - arrays["logits"].amax(dim=1, keepdim=True)).abs()
    references = distance.argsort(dim=1)[:, 1:4]
    raw = combine(arrays["activation"], arrays["grad_per_class"], target, references, gamma=0.6, method=method)
    expected = arrays[f"finer_{method}.paper_uniform.argmax.gamma0.6.top3"]
    torch.testing.assert_close(upsample_maps(raw, (48, 64)), expected, atol=TOLERANCE, rtol=0)
