"""Multiplies rows with an unquantised weight in tiles of one size, whatever the number of rows: `--batch-invariant`.

A row's result then depends on that row alone. A library takes another kernel for another number of rows, which sums in
another order. The price is a tile that fits no number of rows best.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch

_BLOCK_TOKENS = 16
_BLOCK_OUTPUTS = 64
_BLOCK_INPUTS = 64


@triton.jit(do_not_specialize=["num_rows"])
def _tile_matmul_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr,
    num_rows, in_features, out_features, x_stride,
    HAS_BIAS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
    PRECISION: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    tokens = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    is_output, is_token = outputs < out_features, tokens < num_rows
    weight_rows = weight_ptr + outputs.to(tl.int64)[:, None] * in_features
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * x_stride
    wait_for_predecessor(IS_DEPENDENT)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_OUTPUTS), tl.float32)
    for start in tl.range(0, in_features, BLOCK_INPUTS):
        inputs = start + tl.arange(0, BLOCK_INPUTS)
        is_input = inputs < in_features
        x = tl.load(x_rows + inputs[None, :], mask=is_token[:, None] & is_input[None, :], other=0.0)
        weight = tl.load(weight_rows + inputs[None, :], mask=is_output[:, None] & is_input[None, :], other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)
    let_successor_start(IS_DEPENDENT)
    if HAS_BIAS:
        total += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)[None, :]
    out_rows = out_ptr + tokens.to(tl.int64)[:, None] * out_features
    is_stored = is_token[:, None] & is_output[None, :]
    tl.store(out_rows + outputs[None, :], total.to(out_ptr.dtype.element_ty), mask=is_stored)


def tile_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Multiplies.

    Args:
        x: [T, K], numbers of a row adjacent.
        weight: [N, K], contiguous.
        bias: [N] or None.
        dtype: the result's dtype; that of x if None.

    Returns:
        [T, N].
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    out_features, in_features = weight.shape
    out = torch.empty((len(x), out_features), dtype=dtype or x.dtype, device=x.device)
    launch(
        _tile_matmul_kernel,
        (triton.cdiv(out_features, _BLOCK_OUTPUTS), triton.cdiv(len(x), _BLOCK_TOKENS)),
        x, weight, bias, out,
        len(x), in_features, out_features, x.stride(0),
        HAS_BIAS=bias is not None, BLOCK_TOKENS=_BLOCK_TOKENS, BLOCK_OUTPUTS=_BLOCK_OUTPUTS,
        BLOCK_INPUTS=_BLOCK_INPUTS, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
