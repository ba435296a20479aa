"""Fixtures of the tests of meda-cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meda_cache import detach
from support.tiny_decoders import BUILDERS, Family, build_family

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=list(BUILDERS))
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    family = build_family(request.param)
    yield family
    detach(family.model)
    family.model.set_attn_implementation("sdpa")


@pytest.fixture
def named_family() -> Iterator[Any]:
    """Builds families by name."""
    built: list[Family] = []

    def build(name: str) -> Family:
        built.append(build_family(name))
        return built[-1]

    yield build
    for family in built:
        detach(family.model)
        family.model.set_attn_implementation("sdpa")


@pytest.fixture
def llava() -> Iterator[Family]:
    family = build_family("llava")
    yield family
    detach(family.model)
    family.model.set_attn_implementation("sdpa")


@pytest.fixture
def golden() -> Any:
    """Loads a golden array file."""
    return lambda name: {
        key: torch.from_numpy(np.asarray(value)) for key, value in np.load(GOLDEN / f"{name}.npz").items()
    }
