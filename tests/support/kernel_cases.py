"""Shapes and comparisons that the kernel tests share: interpreter on the CPU with tiny sizes, larger ones on a GPU."""

import pytest
import torch

ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ["cpu", ON_GPU]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


INTERPRETED = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
"""For modules whose kernels loop to bounds that are loaded: triton 3.6 interprets them so that NumPy warns of it."""


def require_triton() -> None:
    pytest.importorskip("triton", reason='needs the extra "triton"')


def compare(name: str, ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, bound: float = 0.005) -> None:
    """fp32 entry by entry; half precision by the relative RMS error, since the inputs of the dot are rounded."""
    assert torch.isfinite(ours).all(), name
    if dtype == torch.float32:
        torch.testing.assert_close(
            ours.double(), expected.double(), atol=2e-5, rtol=2e-5, msg=lambda m: f"{name}: {m}"
        )
    elif expected.numel():
        error = (ours.double() - expected.double()).square().mean().sqrt()
        assert error <= bound * expected.double().square().mean().sqrt() + 1e-6, f"{name}: {error}"
