"""Multiplies up to four rows with an unquantised weight, as fast as the memory gives the weight.

A program takes a few outputs and runs along their inputs; products are summed elementwise in float32 and across the
tile only once, at the end. There are programs enough without splitting the inputs, so one kernel does it all, bias and
rounding included.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2

# The library multiplies more rows, on tensor cores.
MAX_ROWS = 4

_BLOCK_OUTPUTS = 8
_BLOCK_INPUTS = 512


@triton.jit
def _load_tile(rows, is_output, start, in_features, BLOCK_INPUTS: tl.constexpr):
    inputs = start + tl.arange(0, BLOCK_INPUTS)
    mask = is_output[:, None] & (inputs < in_features)[None, :]
    # Each weight is used once a step: it must not push out of the cache what is used again.
    return tl.load(rows + inputs[None, :], mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _times_x(weight, x_ptr, tokens, num_rows, start, in_features, x_stride, BLOCK_ROWS: tl.constexpr,
             BLOCK_INPUTS: tl.constexpr):  # fmt: skip
    inputs = start + tl.arange(0, BLOCK_INPUTS)
    if BLOCK_ROWS == 1:
        x = tl.load(x_ptr + inputs, mask=inputs < in_features, other=0.0)
        return weight.to(tl.float32) * x.to(tl.float32)[None, :]
    else:
        mask = (tokens < num_rows)[:, None] & (inputs < in_features)[None, :]
        x = tl.load(x_ptr + tokens[:, None] * x_stride + inputs[None, :], mask=mask, other=0.0)
        return weight.to(tl.float32)[None, :, :] * x.to(tl.float32)[:, None, :]


@triton.jit(do_not_specialize=["num_rows"])
def _row_matmul_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr,
    num_rows, in_features, out_features, x_stride,
    HAS_BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    tokens = tl.arange(0, BLOCK_ROWS)
    is_output = outputs < out_features
    rows = weight_ptr + outputs.to(tl.int64)[:, None] * in_features
    # No kernel writes the weight: its first tile is on its way before the kernel in front has ended.
    weight = _load_tile(rows, is_output, 0, in_features, BLOCK_INPUTS)
    wait_for_predecessor(IS_DEPENDENT)
    total = _times_x(weight, x_ptr, tokens, num_rows, 0, in_features, x_stride, BLOCK_ROWS, BLOCK_INPUTS)
    for start in tl.range(BLOCK_INPUTS, in_features, BLOCK_INPUTS):
        weight = _load_tile(rows, is_output, start, in_features, BLOCK_INPUTS)
        total += _times_x(weight, x_ptr, tokens, num_rows, start, in_features, x_stride, BLOCK_ROWS, BLOCK_INPUTS)
    let_successor_start(IS_DEPENDENT)
    out = tl.sum(total, -1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)
    if BLOCK_ROWS == 1:
        tl.store(out_ptr + outputs, out.to(out_ptr.dtype.element_ty), mask=is_output)
    else:
        mask = (tokens < num_rows)[:, None] & is_output[None, :]
        places = out_ptr + tokens[:, None] * out_features + outputs[None, :]
        tl.store(places, out.to(out_ptr.dtype.element_ty), mask=mask)


def row_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Multiplies a row, or a few.

    Args:
        x: [T, K], contiguous, at most `MAX_ROWS`.
        weight: [N, K], contiguous.
        bias: [N] or None.
        dtype: the result's dtype; that of x if None.

    Returns:
        [T, N].
    """
    out_features, in_features = weight.shape
    block_rows = next_power_of_2(len(x))
    block_outputs = _BLOCK_OUTPUTS if block_rows == 1 else _BLOCK_OUTPUTS // 2
    out = torch.empty((len(x), out_features), dtype=dtype or x.dtype, device=x.device)
    launch(
        _row_matmul_kernel,
        (triton.cdiv(out_features, block_outputs),),
        x, weight, bias, out,
        len(x), in_features, out_features, x.stride(0),
        HAS_BIAS=bias is not None, BLOCK_ROWS=block_rows, BLOCK_OUTPUTS=block_outputs, BLOCK_INPUTS=_BLOCK_INPUTS,
        num_warps=4,
    )  # fmt: skip
    return out
