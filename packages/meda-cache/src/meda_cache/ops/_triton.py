"""What the kernels of all operations share."""

import triton
import triton.language as tl

NUM_PROGRAMS = 264  # two for each multiprocessor of a large GPU: enough to keep all of them busy


@triton.jit  # type: ignore[untyped-decorator]
def load_rows(pointer, index, valid, stride, dim, stride_d, BLOCK_D: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows `index` of a matrix, zero where not valid and beyond `dim`; float32 if WIDE (the interpreter)."""
    d = tl.arange(0, BLOCK_D)
    address = pointer + index.to(tl.int64)[:, None] * stride + d[None] * stride_d
    rows = tl.load(address, mask=valid[:, None] & (d < dim)[None], other=0.0)
    return rows.to(tl.float32) if WIDE else rows
