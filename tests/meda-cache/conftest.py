"""Fixtures of the tests of meda-cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.tiny_decoders import BUILDERS, Family, build_family

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=list(BUILDERS))
def family(request: pytest.FixtureRequest) -> Family:
    return build_family(request.param)


@pytest.fixture
def llava() -> Family:
    return build_family("llava")


@pytest.fixture
def golden() -> Any:
    """Loads a golden array file."""
    return lambda name: {
        key: torch.from_numpy(np.asarray(value)) for key, value in np.load(GOLDEN / f"{name}.npz").items()
    }
