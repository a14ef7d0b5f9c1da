"""One row times an unquantised weight: nothing but reading the weight, as fast as the memory gives it.

A program takes a few outputs and runs along their inputs; products are summed elementwise in float32 and across the
tile only once, at the end. There are programs enough without splitting the inputs, so one kernel does it all, bias and
rounding included.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.launch import launch

_BLOCK_OUTPUTS = 8
_BLOCK_INPUTS = 512


@triton.jit
def _row_matmul_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    in_features,
    out_features,
    HAS_BIAS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
):
    outputs = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_output = outputs < out_features
    rows = weight_ptr + outputs.to(tl.int64)[:, None] * in_features
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_INPUTS], tl.float32)
    for start in tl.range(0, in_features, BLOCK_INPUTS):
        inputs = start + tl.arange(0, BLOCK_INPUTS)
        is_input = inputs < in_features
        mask = is_output[:, None] & is_input[None, :]
        # Each weight is used once a step: it need not push what comes again out of the cache.
        weight = tl.load(rows + inputs[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_ptr + inputs, mask=is_input, other=0.0)
        total += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    out = tl.sum(total, 1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out_ptr + outputs, out.to(out_ptr.dtype.element_ty), mask=is_output)


def row_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Multiplies one row.

    Args:
        x: [1, K], contiguous.
        weight: [N, K], contiguous.
        bias: [N] or None.
        dtype: of the result; that of x if None.

    Returns:
        [1, N].
    """
    out_features, in_features = weight.shape
    out = torch.empty((1, out_features), dtype=dtype or x.dtype, device=x.device)
    launch(
        _row_matmul_kernel,
        (triton.cdiv(out_features, _BLOCK_OUTPUTS),),
        x,
        weight,
        bias,
        out,
        in_features,
        out_features,
        HAS_BIAS=bias is not None,
        BLOCK_OUTPUTS=_BLOCK_OUTPUTS,
        BLOCK_INPUTS=_BLOCK_INPUTS,
        num_warps=4,
    )
    return out
