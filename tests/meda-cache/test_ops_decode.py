"""Attention of one new token: torch and Triton against float64, and the cache with the kernel."""

import os
from typing import Any

import pytest
import torch

from meda_cache import MedaCache, attach
from meda_cache.ops import resolve_backend
from meda_cache.ops.decode import decode_attention, reference
from support.kernel_cases import DEVICES, INTERPRETED, compare, require_triton
from support.tiny_decoders import build_family

pytestmark = INTERPRETED

# (batch, key heads, groups, slots, head_dim, value_head_dim)
SHAPES = {
    "one-slot": (1, 1, 1, 1, 16, 16),
    "odd": (3, 2, 3, 70, 32, 32),
    "splits": (1, 1, 7, 300, 16, 16),
    "odd-dims": (2, 2, 4, 33, 24, 40),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decode_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype, backend: Any, device: str) -> None:
    if backend == "triton":
        require_triton()
    batch, heads, groups, slots, dim, value_dim = shape
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, heads * groups, 1, dim, generator=generator).to(device, dtype)
    buffer = torch.randn(batch, heads, slots + 9, dim, generator=generator).to(device, dtype)
    keys = buffer[:, :, :slots]  # a view into a buffer with slots to spare, as in the cache
    values = torch.randn(batch, heads, slots, value_dim, generator=generator).to(device, dtype)
    start = torch.randint(0, slots, (batch,), generator=generator).to(device)
    bias = torch.randn(batch, heads, slots, generator=generator).to(device)
    for options in ({}, {"start": start}, {"bias": bias}, {"start": start, "bias": bias}):
        ours = decode_attention(queries, keys, values, backend=backend, **options)
        expected = reference.decode_attention(
            queries.cpu(),
            keys.cpu(),
            values.cpu(),
            *(options[name].cpu() if name in options else None for name in ("start", "bias")),
            scaling=dim**-0.5,
        )
        assert ours.dtype == dtype
        compare("output", ours.cpu(), expected, dtype, bound=0.01)  # torch takes the bias in the dtype of the keys


def test_the_cache_decodes_with_the_kernel_as_without() -> None:
    require_triton()
    family = build_family("llama")
    inputs, logits = family.prompts(0, 2), []
    with attach(family.model), torch.no_grad():
        for backend in ("torch", "triton"):
            cache = MedaCache(family.model.config, preset="streaming_llm", keep_ratio=0.5, backend=backend)
            family.model(**inputs, past_key_values=cache)
            cache.compress()
            assert cache.layers[0].start is not None
            logits.append(family.model(input_ids=torch.tensor([[5], [6]]), past_key_values=cache).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


def test_backend_is_chosen_by_device_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    assert resolve_backend("auto", tensor) == "torch"
    with pytest.raises(ValueError, match=r'one of "auto", "torch", "triton", got .cuda.'):
        resolve_backend("cuda", tensor)  # type: ignore[arg-type]
    monkeypatch.setattr("meda_cache.ops.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "meda-cache\[triton\]"'):
        resolve_backend("triton", tensor)
    monkeypatch.setattr("meda_cache.ops.find_spec", lambda name: name)
    monkeypatch.setattr(os, "environ", {})
    with pytest.raises(ValueError, match=r'CUDA tensors for `backend="triton"`, got cpu'):
        resolve_backend("triton", tensor)
