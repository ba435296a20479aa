"""The three operations that cost time: statistics of attention, merging, and decoding.

Each comes three times. `reference.py` is plain float64 and follows the formula; the torch path works in tiles and is
what a CPU runs; the Triton kernels are for CUDA. `backend="auto"` takes Triton for CUDA tensors where triton is
installed, else torch.
"""

import os
from importlib.util import find_spec
from typing import Literal

from torch import Tensor

Backend = Literal["auto", "torch", "triton"]


def resolve_backend(backend: Backend, tensor: Tensor) -> Literal["torch", "triton"]:
    """Returns the backend that runs an operation on `tensor`.

    Raises:
        ValueError: for an unknown name, and for Triton with tensors that it can't reach.
        ImportError: if Triton is asked for and not installed.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f'Expected `backend` to be one of "auto", "torch", "triton", got {backend!r}.')
    if backend == "torch":
        return "torch"
    is_installed = find_spec("triton") is not None
    if backend == "auto":
        return "triton" if tensor.is_cuda and is_installed else "torch"
    if not is_installed:
        raise ImportError('`backend="triton"` needs triton; run `pip install "meda-cache[triton]"`.')
    if not (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(f'Expected CUDA tensors for `backend="triton"`, got {tensor.device}; use "auto" or "torch".')
    return "triton"


def gather_states(states: Tensor, positions: Tensor) -> Tensor:
    """Returns the states `(num_heads, num_positions, head_dim)` at positions of `(num_heads, num_positions)`."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))
