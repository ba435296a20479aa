"""Fixtures of the tests of partial-tune."""

import pytest
import torch
from torch import nn

from partial_tune import ClassPartition
from support.partial_models import CASES, FAMILIES, NAMES, Family, Golden, build_lora_vit, build_vit, load_golden


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(params=[name for name in CASES if name != "remaining"])
def golden_curve(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture
def partition() -> ClassPartition:
    return ClassPartition(NAMES, (0, 2, 3))


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(0)
    family = FAMILIES[request.param]()
    family.model.eval()
    return family


@pytest.fixture
def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return build_vit().eval()


@pytest.fixture
def tiny_lora_vit() -> nn.Module:
    torch.manual_seed(0)
    return build_lora_vit().eval()
