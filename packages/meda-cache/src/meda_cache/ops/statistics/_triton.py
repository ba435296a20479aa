"""Triton kernels for the statistics of attention.

Letters: H query heads, N key heads, G = H / N, R rows, S keys, D head_dim. Scores are scaled by log2(e) beforehand, so
that exp2 and log2 are used; what goes in and out is in nats.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from meda_cache.ops._triton import NUM_PROGRAMS, load_rows

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def _visible_tile(rows, columns, num_rows, num_keys, p_first, p_second, stride_mask, MASK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which of the columns each row sees: all (0), up to its own position (1), or as a matrix says (2)."""
    visible = (rows < num_rows)[:, None] & (columns < num_keys)[None]
    if MASK == 1:
        row_position = tl.load(p_first + rows, mask=rows < num_rows, other=-1)
        key_position = tl.load(p_second + columns, mask=columns < num_keys, other=0)
        visible &= key_position[None] <= row_position[:, None]
    if MASK == 2:
        address = p_first + rows.to(tl.int64)[:, None] * stride_mask + columns[None]
        visible &= tl.load(address, mask=visible, other=0) != 0
    return visible


@triton.jit
def _any(visible):  # type: ignore[no-untyped-def]
    """Whether any row of a tile sees any of its keys: others are skipped, half of all where attention is causal."""
    return tl.max(tl.max(visible.to(tl.int32), axis=1), axis=0) > 0


@triton.jit  # type: ignore[untyped-decorator]
def row_lse_fwd_kernel(  # type: ignore[no-untyped-def]
    p_q,
    p_k,
    p_lse,
    p_first,
    p_second,
    stride_qh,
    stride_qr,
    stride_qd,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_mask,
    num_rows,
    num_keys,
    head_dim,
    groups,
    scale,
    MASK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """lse_hi = ln sum_j exp(scale q_hi k_j) over visible keys; 0 for a row that sees none.

    One program: a head, BLOCK_R rows. Reads K once per row block; writes H * R float32. Any float dtype, float32
    accumulation.
    """
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    q = load_rows(p_q + head * stride_qh, rows, rows < num_rows, stride_qr, head_dim, stride_qd, BLOCK_D, WIDE)
    keys = p_k + head // groups * stride_kh
    top = tl.full((BLOCK_R,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, num_keys, BLOCK_S):
        columns = start + tl.arange(0, BLOCK_S)
        visible = _visible_tile(rows, columns, num_rows, num_keys, p_first, p_second, stride_mask, MASK)
        if _any(visible):
            k = load_rows(keys, columns, columns < num_keys, stride_ks, head_dim, stride_kd, BLOCK_D, WIDE)
            scores = tl.where(visible, tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E), -1.0e30)
            new_top = tl.maximum(top, tl.max(scores, axis=1))
            weights = tl.where(visible, tl.exp2(scores - new_top[:, None]), 0.0)
            total = total * tl.exp2(top - new_top) + tl.sum(weights, axis=1)
            top = new_top
    lse = tl.where(total > 0, (top + tl.log2(tl.where(total > 0, total, 1.0))) / LOG2E, 0.0)
    tl.store(p_lse + head * num_rows + rows, lse, mask=rows < num_rows)


@triton.jit  # type: ignore[untyped-decorator]
def key_mass_fwd_kernel(  # type: ignore[no-untyped-def]
    p_q,
    p_k,
    p_lse,
    p_mass,
    p_entropy,
    p_first,
    p_second,
    stride_qh,
    stride_qr,
    stride_qd,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_mask,
    num_rows,
    num_keys,
    head_dim,
    groups,
    scale,
    WITH_ENTROPY: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """m_nj = sum_g sum_i p_gij, and on the way each row's part of -sum_j p ln p.

    One program: a key head, BLOCK_S keys. The K tile stays on chip for all rows and all G heads; m is summed in
    registers, no atomics: the result does not depend on the order in which programs run. Reads Q once per key block;
    writes N * S float32, and with entropies (S / BLOCK_S) * H * R float32.
    """
    block, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = block * BLOCK_S + tl.arange(0, BLOCK_S)
    k = tl.trans(
        load_rows(
            p_k + kv_head * stride_kh, columns, columns < num_keys, stride_ks, head_dim, stride_kd, BLOCK_D, WIDE
        )
    )
    mass = tl.zeros((BLOCK_S,), tl.float32)
    num_heads = tl.num_programs(1) * groups
    for start in range(0, num_rows, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        visible = _visible_tile(rows, columns, num_rows, num_keys, p_first, p_second, stride_mask, MASK)
        for group in range(groups if _any(visible) else 0):
            head = kv_head * groups + group
            q = load_rows(p_q + head * stride_qh, rows, rows < num_rows, stride_qr, head_dim, stride_qd, BLOCK_D, WIDE)
            lse = tl.load(p_lse + head * num_rows + rows, mask=rows < num_rows, other=0.0)
            logs = tl.dot(q, k, input_precision="ieee") * scale - lse[:, None]  # ln p
            logs = tl.where(visible, logs, 0.0)
            probs = tl.where(visible, tl.exp2(logs * LOG2E), 0.0)
            mass += tl.sum(probs, axis=0)
            if WITH_ENTROPY:
                address = p_entropy + (block * num_heads + head) * num_rows + rows
                tl.store(address, -tl.sum(probs * logs, axis=1), mask=rows < num_rows)
    tl.store(p_mass + kv_head * num_keys + columns, mass, mask=columns < num_keys)


@triton.jit  # type: ignore[untyped-decorator]
def row_entropy_fwd_kernel(  # type: ignore[no-untyped-def]
    p_q,
    p_k,
    p_lse,
    p_entropy,
    p_first,
    p_second,
    stride_qh,
    stride_qr,
    stride_qd,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_mask,
    num_rows,
    num_keys,
    head_dim,
    groups,
    num_heads,
    keys_per_split,
    scale,
    MASK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """H_i = -sum_j a_ij ln a_ij over one split of the keys, with a the attention averaged over heads.

    One program: BLOCK_R rows, a split, all heads. Only a [BLOCK_R, BLOCK_S] tile of averaged attention
    exists at a time; 0 ln 0 is 0 by selection. Writes splits * R float32, which are added up without atomics.
    """
    rows, split = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.program_id(1).to(tl.int64)
    begin = tl.program_id(1) * keys_per_split
    end = tl.minimum(begin + keys_per_split, num_keys)
    entropy = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(begin, end, BLOCK_S):
        columns = start + tl.arange(0, BLOCK_S)
        visible = _visible_tile(rows, columns, num_rows, num_keys, p_first, p_second, stride_mask, MASK)
        mean = tl.zeros((BLOCK_R, BLOCK_S), tl.float32)
        for head in range(num_heads if _any(visible) else 0):
            h = tl.cast(head, tl.int64)
            q = load_rows(p_q + h * stride_qh, rows, rows < num_rows, stride_qr, head_dim, stride_qd, BLOCK_D, WIDE)
            k = load_rows(
                p_k + h // groups * stride_kh,
                columns,
                columns < num_keys,
                stride_ks,
                head_dim,
                stride_kd,
                BLOCK_D,
                WIDE,
            )
            lse = tl.load(p_lse + h * num_rows + rows, mask=rows < num_rows, other=0.0)
            logs = tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse[:, None]
            mean += tl.where(visible, tl.exp2(tl.where(visible, logs, 0.0) * LOG2E), 0.0)
        mean = mean / num_heads
        entropy -= tl.sum(mean * tl.log2(tl.where(mean > 0, mean, 1.0)), axis=1) / LOG2E
    tl.store(p_entropy + split * num_rows + rows, entropy, mask=rows < num_rows)


def compute_statistics(
    query_states: Tensor,
    key_states: Tensor,
    *,
    scaling: float,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    visible: Tensor | None,
    with_mass: bool,
    head_reduction: str | None,
    lse: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns key mass and row entropy; arguments as in [`meda_cache.ops.statistics.attention_statistics`]."""
    num_heads, num_rows, head_dim = query_states.shape
    num_key_value_heads, num_keys, _ = key_states.shape
    groups = num_heads // num_key_value_heads
    key_states = key_states.to(query_states.dtype)
    empty = key_states.new_zeros(1, dtype=torch.int64)
    mask, first, second, stride_mask = 0, empty, empty, 0
    if query_positions is not None and key_positions is not None:
        mask, first, second = 1, query_positions.long().contiguous(), key_positions.long().contiguous()
    elif visible is not None:
        first = visible.contiguous().view(torch.uint8)
        mask, stride_mask = 2, first.stride(0)
    block_d = max(16, triton.next_power_of_2(head_dim))
    tiles: dict[str, Any] = {
        "MASK": mask,
        "BLOCK_R": 64 if block_d <= 128 else 32,
        "BLOCK_S": 64,
        "BLOCK_D": block_d,
        "WIDE": not key_states.is_cuda,
    }
    strides = (*query_states.stride(), *key_states.stride(), stride_mask, num_rows, num_keys, head_dim, groups)
    row_blocks, key_blocks = triton.cdiv(num_rows, tiles["BLOCK_R"]), triton.cdiv(num_keys, tiles["BLOCK_S"])
    float32: dict[str, Any] = {"dtype": torch.float32, "device": key_states.device}
    mass = torch.zeros(num_key_value_heads, num_keys, **float32) if with_mass else None
    entropy = torch.zeros(num_rows, **float32) if head_reduction is not None else None
    if num_rows == 0 or num_keys == 0:
        return mass, entropy
    if lse is None:  # the attention op gave none
        lse = torch.empty(num_heads, num_rows, **float32)
        arguments = (query_states, key_states, lse, first, second, *strides, scaling)
        row_lse_fwd_kernel[row_blocks, num_heads](*arguments, **tiles)
    lse = lse.float().contiguous()
    per_head = head_reduction == "mean_entropy"
    if with_mass or per_head:
        sums = torch.empty(num_key_value_heads, num_keys, **float32)
        parts = torch.zeros(key_blocks if per_head else 1, num_heads if per_head else 1, num_rows, **float32)
        arguments = (query_states, key_states, lse, sums, parts, first, second, *strides, scaling)
        key_mass_fwd_kernel[key_blocks, num_key_value_heads](*arguments, WITH_ENTROPY=per_head, **tiles)
        mass = sums if with_mass else None
        entropy = parts.sum(dim=0).mean(dim=0) if per_head else entropy
    if head_reduction == "mean_attention":
        keys_per_split = split_keys(row_blocks, key_blocks) * tiles["BLOCK_S"]
        parts = torch.empty(triton.cdiv(num_keys, keys_per_split), num_rows, **float32)
        arguments = (query_states, key_states, lse, parts, first, second, *strides, num_heads, keys_per_split, scaling)
        row_entropy_fwd_kernel[row_blocks, len(parts)](*arguments, **tiles)
        entropy = parts.sum(dim=0)
    return mass, entropy


def split_keys(row_blocks: int, key_blocks: int) -> int:
    """Returns how many blocks of keys one program of the entropy takes, so that few rows keep the whole GPU busy."""
    num_splits = max(1, min(key_blocks, NUM_PROGRAMS // row_blocks))
    blocks: int = triton.cdiv(key_blocks, num_splits)
    return blocks
