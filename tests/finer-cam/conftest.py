"""Tiny models, and golden arrays with their models."""

import json
from pathlib import Path

import pytest
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn

from support.tiny_classifiers import FAMILIES, build

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny_vit() -> nn.Module:
    return build("vit")


@pytest.fixture
def tiny_resnet() -> nn.Module:
    return build("resnet")


@pytest.fixture(scope="session", params=["tiny_vit", "tiny_resnet"])
def golden(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Tensor], str]:
    """A model with its weights, the golden arrays, and the target layer."""
    name = request.param
    options = json.loads((GOLDEN / f"{name}.config.json").read_text(encoding="utf-8"))
    if name == "tiny_vit":
        model, layer = tf.ViTForImageClassification(tf.ViTConfig(**options)), "auto"
    else:
        model, layer = tf.ResNetForImageClassification(tf.ResNetConfig(**options)), "resnet.encoder.stages.1"
    model.load_state_dict(load_file(GOLDEN / f"{name}.weights.safetensors"))
    return model.eval(), load_file(GOLDEN / f"{name}.golden.safetensors"), layer
