"""Triton kernels for decoding: attention of one query split over blocks of slots, and the sum of the parts.

Letters: B prompts, N key heads, G query heads that share one, L slots, D and DV head dims.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from meda_cache.ops._triton import NUM_PROGRAMS, load_rows


@triton.jit  # type: ignore[untyped-decorator]
def split_decode_fwd_kernel(  # type: ignore[no-untyped-def]
    p_q,
    p_k,
    p_v,
    p_start,
    p_bias,
    p_acc,
    p_top,
    p_sum,
    stride_qb,
    stride_qh,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_vd,
    num_heads,
    groups,
    num_slots,
    dim,
    value_dim,
    slots_per_split,
    scale,
    HAS_START: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Softmax of scale q K^T + bias times V over one split of the slots: maximum, sum, and weighted values.

    One program: a key head and a split; the G query heads go together, padded to BLOCK_G for the dot. K and V are read
    once. float32 accumulation; `acc` is not divided by the sum yet.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_kv_heads = num_heads // groups
    batch, kv_head = row // num_kv_heads, row % num_kv_heads
    g, dv = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_DV)
    queries, keys = p_q + batch * stride_qb, p_k + batch * stride_kb + kv_head * stride_kh
    values = p_v + batch * stride_vb + kv_head * stride_vh
    q = load_rows(queries, kv_head * groups + g, g < groups, stride_qh, dim, stride_qd, BLOCK_D, WIDE)
    first = tl.load(p_start + batch) if HAS_START else 0
    begin = split * slots_per_split
    end = tl.minimum(begin + slots_per_split, num_slots)
    top = tl.full((BLOCK_G,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, BLOCK_DV), tl.float32)
    for at in range(begin, end, BLOCK_L):
        slot = at + tl.arange(0, BLOCK_L)
        valid = (slot < end) & (slot >= first)
        k = load_rows(keys, slot, valid, stride_ks, dim, stride_kd, BLOCK_D, WIDE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if HAS_BIAS:
            scores += tl.load(p_bias + row * num_slots + slot, mask=valid, other=0.0)[None]
        scores = tl.where(valid[None], scores * 1.4426950408889634, -1.0e30)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.where(valid[None], tl.exp2(scores - new_top[:, None]), 0.0)
        fade = tl.exp2(top - new_top)
        v = load_rows(values, slot, valid, stride_vs, value_dim, stride_vd, BLOCK_DV, WIDE)
        acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(weights, axis=1)
        top = new_top
    part = (split * tl.num_programs(0) + row) * groups + g
    tl.store(p_top + part, top, mask=g < groups)
    tl.store(p_sum + part, total, mask=g < groups)
    tl.store(p_acc + part[:, None] * value_dim + dv[None], acc, mask=(g < groups)[:, None] & (dv < value_dim)[None])


@triton.jit  # type: ignore[untyped-decorator]
def combine_splits_fwd_kernel(  # type: ignore[no-untyped-def]
    p_acc, p_top, p_sum, p_out, num_rows, num_splits, value_dim, BLOCK_DV: tl.constexpr
):
    """o = sum_s 2^(m_s - m) acc_s / sum_s 2^(m_s - m) l_s. One program: one query head of one prompt."""
    row = tl.program_id(0).to(tl.int64)
    dv = tl.arange(0, BLOCK_DV)
    top = tl.full((), -1.0e30, tl.float32)
    total = tl.zeros((), tl.float32)
    acc = tl.zeros((BLOCK_DV,), tl.float32)
    for split in range(num_splits):
        part = split * num_rows + row
        part_top = tl.load(p_top + part)
        new_top = tl.maximum(top, part_top)
        old, new = tl.exp2(top - new_top), tl.exp2(part_top - new_top)
        acc = acc * old + tl.load(p_acc + part * value_dim + dv, mask=dv < value_dim, other=0.0) * new
        total = total * old + tl.load(p_sum + part) * new
        top = new_top
    out = (acc / total).to(p_out.dtype.element_ty)
    tl.store(p_out + row * value_dim + dv, out, mask=dv < value_dim)


def decode_attention(
    query_states: Tensor,
    key_states: Tensor,
    value_states: Tensor,
    start: Tensor | None,
    bias: Tensor | None,
    scaling: float,
) -> Tensor:
    """See [`meda_cache.ops.decode.decode_attention`]."""
    batch_size, num_heads, _, dim = query_states.shape
    num_kv_heads, num_slots, value_dim = key_states.shape[1], key_states.shape[2], value_states.shape[-1]
    groups, rows, block = num_heads // num_kv_heads, batch_size * num_kv_heads, 64
    num_splits = max(1, min(triton.cdiv(num_slots, block), NUM_PROGRAMS // rows))
    slots_per_split = triton.cdiv(triton.cdiv(num_slots, num_splits), block) * block
    num_splits = triton.cdiv(num_slots, slots_per_split)
    float32: dict[str, Any] = {"dtype": torch.float32, "device": key_states.device}
    acc = torch.empty(num_splits, rows, groups, value_dim, **float32)
    top, total = torch.empty(2, num_splits, rows, groups, **float32)
    output = query_states.new_empty(batch_size, 1, num_heads, value_dim)
    empty = top
    split_decode_fwd_kernel[rows, num_splits](
        query_states, key_states, value_states, empty if start is None else start.int().contiguous(),
        empty if bias is None else bias.float().contiguous(), acc, top, total, query_states.stride(0),
        query_states.stride(1), query_states.stride(3), *key_states.stride(), *value_states.stride(), num_heads,
        groups, num_slots, dim, value_dim, slots_per_split, scaling, HAS_START=start is not None,
        HAS_BIAS=bias is not None,
        WIDE=not key_states.is_cuda,  # the interpreter has no bf16 dot
        BLOCK_G=max(16, triton.next_power_of_2(groups)), BLOCK_L=block,
        BLOCK_D=max(16, triton.next_power_of_2(dim)), BLOCK_DV=max(16, triton.next_power_of_2(value_dim)),
    )  # fmt: skip
    block_dv = triton.next_power_of_2(value_dim)
    combine_splits_fwd_kernel[(rows * groups,)](
        acc, top, total, output, rows * groups, num_splits, value_dim, BLOCK_DV=block_dv
    )
    return output
