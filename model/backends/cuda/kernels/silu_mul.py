"""The gate of the MLP: `up * silu(gate)` in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch

_BLOCK = 1024


@triton.jit
def _silu_mul_kernel(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, num_columns, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr
):
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + columns, mask=mask, other=0.0).to(tl.float32)
    out = up * gate / (1.0 + tl.exp(-gate))
    tl.store(out_ptr + row * num_columns + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`up * silu(gate)`, in float32 in between.

    Args:
        gate: [T, N], rows of any stride.
        up: the same shape and dtype.

    Returns:
        [T, N], contiguous.
    """
    gate, up = (x if x.stride(1) == 1 else x.contiguous() for x in (gate, up))
    num_rows, num_columns = gate.shape
    out = torch.empty((num_rows, num_columns), dtype=gate.dtype, device=gate.device)
    grid = (num_rows, triton.cdiv(num_columns, _BLOCK))
    launch(_silu_mul_kernel, grid, gate, up, out, gate.stride(0), up.stride(0), num_columns, BLOCK=_BLOCK)
    return out
