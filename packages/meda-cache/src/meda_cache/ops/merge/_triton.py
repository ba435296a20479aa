"""Triton kernels for merging: a flash-like argmax, and a sum over segments without atomics.

Letters: H key heads, K kept, E evicted, D head_dim.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from meda_cache.ops._triton import load_rows

RULES = {"mean": 0, "pivotal": 1, "normalized": 2}


@triton.jit
def _inverse_norm(rows):  # type: ignore[no-untyped-def]
    """1 / max(|row|, 1e-6), in float32."""
    squares = rows.to(tl.float32) * rows.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, axis=1)), 1e-6)


@triton.jit  # type: ignore[untyped-decorator]
def nearest_kept_fwd_kernel(  # type: ignore[no-untyped-def]
    p_k,
    p_kept,
    p_evicted,
    p_nearest,
    p_cosine,
    stride_h,
    stride_s,
    stride_d,
    num_kept,
    num_evicted,
    dim,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """argmax_c cos(k_e, k_c) with a running maximum over tiles of kept keys. One program: a head, BLOCK_E evicted.

    The E x K similarity is never written; ties go to the lower index. Keys go into the dot in their own dtype, with
    float32 accumulation, and are divided by their norms after it.
    """
    head = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    keys = p_k + head * stride_h
    position = tl.load(p_evicted + head * num_evicted + e, mask=e < num_evicted, other=0)
    source = load_rows(keys, position, e < num_evicted, stride_s, dim, stride_d, BLOCK_D, WIDE)
    source_scale = _inverse_norm(source)
    best = tl.full((BLOCK_E,), -2.0, tl.float32)
    arg = tl.zeros((BLOCK_E,), tl.int64)
    for start in range(0, num_kept, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        target_position = tl.load(p_kept + head * num_kept + c, mask=c < num_kept, other=0)
        target = load_rows(keys, target_position, c < num_kept, stride_s, dim, stride_d, BLOCK_D, WIDE)
        cosine = tl.dot(source, tl.trans(target), input_precision="ieee")
        cosine = cosine * source_scale[:, None] * _inverse_norm(target)[None]
        cosine = tl.where((c < num_kept)[None], cosine, -2.0)
        highest = tl.max(cosine, axis=1)
        first = tl.min(tl.where(cosine == highest[:, None], c[None], num_kept), axis=1)
        arg = tl.where(highest > best, first.to(tl.int64), arg)
        best = tl.maximum(best, highest)
    tl.store(p_nearest + head * num_evicted + e, arg, mask=e < num_evicted)
    tl.store(p_cosine + head * num_evicted + e, best, mask=e < num_evicted)


@triton.jit  # type: ignore[untyped-decorator]
def segment_merge_fwd_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_kept,
    p_order,
    p_weight,
    p_offset,
    p_out,
    stride_h,
    stride_s,
    stride_d,
    num_kept,
    num_evicted,
    dim,
    RULE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(c + sum w e) / (1 + r) over the segment of evicted states that point to c. One program: a head, a kept state.

    Segments are sorted by target and position, and summed in that order in float32: no atomics, the same result each
    time. Reads every state once and writes the kept ones once.
    """
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    states = p_x + head * stride_h
    position = tl.load(p_kept + head * num_kept + slot).to(tl.int64)
    raw = tl.load(states + position * stride_s + d * stride_d, mask=d < dim, other=0.0)
    own = raw.to(tl.float32)
    begin = tl.load(p_offset + head * (num_kept + 1) + slot)
    end = tl.load(p_offset + head * (num_kept + 1) + slot + 1)
    total, weight_sum = tl.zeros((BLOCK_D,), tl.float32), 0.0
    for start in range(begin, end, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        source = tl.load(p_order + head * num_evicted + e, mask=e < end, other=0)
        weight = tl.load(p_weight + head * num_evicted + e, mask=e < end, other=0.0)
        others = load_rows(states, source, e < end, stride_s, dim, stride_d, BLOCK_D, True)
        total += tl.sum(others * weight[:, None], axis=0)
        weight_sum += tl.sum(weight, axis=0)
    count = (end - begin).to(tl.float32)
    divisor = 1.0 + (weight_sum if RULE == 2 else count)
    factor = 1.0 + count / 2 if RULE == 1 else 1.0
    merged = ((own * factor + total) / divisor).to(raw.dtype)
    address = p_out + (head * num_kept + slot) * dim + d
    tl.store(address, tl.where(count > 0, merged, raw), mask=d < dim)


def find_nearest(key_states: Tensor, kept: Tensor, evicted: Tensor) -> tuple[Tensor, Tensor]:
    """See [`meda_cache.ops.merge.find_nearest`]."""
    (num_heads, num_kept), num_evicted = kept.shape, evicted.shape[1]
    nearest = torch.zeros_like(evicted, memory_format=torch.contiguous_format)
    cosine = torch.zeros(evicted.shape, dtype=torch.float32, device=evicted.device)
    if num_evicted == 0:
        return nearest, cosine
    block_d = max(16, triton.next_power_of_2(key_states.shape[-1]))
    nearest_kept_fwd_kernel[triton.cdiv(num_evicted, 64), num_heads](
        key_states, kept.contiguous(), evicted.contiguous(), nearest, cosine, *key_states.stride(), num_kept,
        num_evicted, key_states.shape[-1], BLOCK_E=64, BLOCK_K=64, BLOCK_D=block_d,
        WIDE=not key_states.is_cuda,  # the interpreter has no bf16 dot
    )  # fmt: skip
    return nearest, cosine


def merge_segments(
    states: Tensor, kept: Tensor, evicted: Tensor, nearest: Tensor, weights: Tensor, rule: str
) -> Tensor:
    """See [`meda_cache.ops.merge.merge_segments`]."""
    (num_heads, num_kept), num_evicted = kept.shape, evicted.shape[1]
    target = torch.where(nearest < 0, num_kept, nearest)  # dropped states come last
    order = torch.argsort(target, dim=-1, stable=True)
    slots = torch.arange(num_kept + 1, device=kept.device).expand(num_heads, -1).contiguous()
    offsets = torch.searchsorted(target.gather(1, order), slots)
    weight = torch.full_like(weights, 0.5) if rule == "pivotal" else weights
    merged = torch.empty(num_heads, num_kept, states.shape[-1], dtype=states.dtype, device=states.device)
    segment_merge_fwd_kernel[num_kept, num_heads](
        states, kept.contiguous(), evicted.gather(1, order), weight.float().gather(1, order), offsets, merged,
        *states.stride(), num_kept, num_evicted, states.shape[-1], RULE=RULES[rule], BLOCK_E=16,
        BLOCK_D=triton.next_power_of_2(states.shape[-1]),
    )  # fmt: skip
    return merged
