"""Nearest kept keys and merged segments: torch and Triton against loops in float64."""

from typing import Any

import pytest
import torch

from meda_cache import merge_tokens
from meda_cache.ops.merge import find_nearest, merge_segments, reference
from support.kernel_cases import DEVICES, INTERPRETED, compare, require_triton

pytestmark = INTERPRETED

# (heads, seq_len, kept, head_dim)
SHAPES = {"one": (1, 2, 1, 16), "nothing-evicted": (2, 5, 5, 16), "odd": (2, 75, 21, 32), "odd-dim": (3, 40, 20, 10)}


def build(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, length, num_kept, dim = shape
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(length, heads, dim, generator=generator).to(device, dtype).transpose(0, 1)
    kept = torch.stack([torch.randperm(length, generator=generator)[:num_kept].sort().values for _ in range(heads)])
    is_evicted = torch.ones(heads, length, dtype=torch.bool).scatter_(1, kept, False)
    return states, kept.to(device), is_evicted.nonzero()[:, 1].reshape(heads, -1).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_merge_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype, backend: Any, device: str) -> None:
    if backend == "triton":
        require_triton()
    states, kept, evicted = build(shape, dtype, device)
    nearest, cosine = find_nearest(states, kept, evicted, backend=backend)
    expected_nearest, expected_cosine = reference.find_nearest(states.cpu(), kept.cpu(), evicted.cpu())
    assert torch.equal(nearest.cpu(), expected_nearest)
    compare("cosine", cosine.cpu(), expected_cosine, torch.float32)
    nearest = torch.where(cosine > 0.2, nearest, -1)  # some are dropped
    for rule in ("mean", "pivotal", "normalized"):
        merged = merge_segments(states, kept, evicted, nearest, cosine, rule=rule, backend=backend)
        cpu = [tensor.cpu() for tensor in (states, kept, evicted, nearest, cosine)]
        assert merged.dtype == dtype
        compare(rule, merged.cpu(), reference.merge_segments(*cpu, rule), dtype)
        alone = ~(torch.arange(kept.shape[1], device=device)[:, None] == nearest[:, None]).any(dim=-1)
        own = states.gather(1, kept[..., None].expand(-1, -1, states.shape[-1]))
        assert torch.equal(merged[alone], own[alone])


def test_normalized_weights_are_convex_also_where_nothing_is_similar() -> None:
    """A loop in float64; an evicted key that looks away from all kept ones (negative cosines) adds nothing."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 30, 4, generator=generator).abs()
    keys[:, 25:] *= -1  # evicted, and far from every kept key
    values, kept = torch.randn(2, 30, 6, generator=generator), torch.arange(10).expand(2, -1)
    merged_keys, merged_values = merge_tokens(keys, values, kept, merge="weighted_normalized")
    for head in range(2):
        unit = torch.nn.functional.normalize(keys[head].double(), dim=-1)
        for states, merged in ((keys[head].double(), merged_keys[head]), (values[head].double(), merged_values[head])):
            total, weight = states[:10].clone(), torch.ones(10, dtype=torch.float64)
            for token in range(10, 30):
                cosines = unit[:10] @ unit[token]
                nearest = int(cosines.argmax())
                share = max(0.0, float(cosines[nearest]))
                total[nearest] += share * states[token]
                weight[nearest] += share
            torch.testing.assert_close(merged.double(), total / weight[:, None], atol=1e-5, rtol=1e-5)
    assert bool((merged_keys > 0).all())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_ties_go_to_the_first_kept_key(backend: Any) -> None:
    if backend == "triton":
        require_triton()
    keys = torch.eye(16)[[0, 1, 1, 1, 0, 1]][None]
    nearest, _ = find_nearest(keys, torch.tensor([[0, 1, 2]]), torch.tensor([[3, 4, 5]]), backend=backend)
    assert nearest.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_sum_is_the_same_each_time(backend: Any) -> None:
    if backend == "triton":
        require_triton()
    states, kept, evicted = build(SHAPES["odd"], torch.float32, "cpu")
    nearest, cosine = find_nearest(states, kept, evicted)
    runs = [merge_segments(states, kept, evicted, nearest, cosine, backend=backend) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
