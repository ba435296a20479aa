"""Tiny models and images for the tests of peft-ensemble."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from support.tiny_adapters import build_family


@pytest.fixture
def build_model() -> Callable[[str], PreTrainedModel]:
    """A model of a family, always with the same weights."""
    return lambda name: copy.deepcopy(build_family(name))


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
