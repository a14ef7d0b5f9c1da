"""RMSNorm in one pass over a row, with the residual addition before it where there is one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2


@triton.jit
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr,
    x_stride, residual_stride, hidden_size, epsilon,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden_size
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        places = residual_ptr + row * residual_stride + columns
        residual = tl.load(places, mask=mask, other=0.0)
        # Rounded to the residual's dtype, and normalised after that.
        x = (residual.to(tl.float32) + x.to(tl.float32)).to(residual_ptr.dtype.element_ty)
        tl.store(places, x, mask=mask)
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / hidden_size + epsilon)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    # Cast before the weight is applied: that is the published order, and in half precision it shows.
    normalised = (wide * factor).to(out_ptr.dtype.element_ty).to(tl.float32)
    out = (normalised * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * hidden_size + columns, out, mask=mask)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """Normalises rows, after adding `x` to the residual in place if there is one.

    Args:
        x: [T, hidden], rows of any stride.
        weight: [hidden].
        epsilon: added to the mean square.
        residual: [T, hidden], usually float32; becomes `residual + x`, and that is normalised.

    Returns:
        [T, hidden], contiguous, dtype of the weight.
    """
    num_rows, hidden_size = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.empty((num_rows, hidden_size), dtype=weight.dtype, device=x.device)
    block = next_power_of_2(hidden_size)
    launch(
        _rms_norm_kernel,
        (num_rows,),
        x, residual, weight, out,
        x.stride(0), 0 if residual is None else residual.stride(0), hidden_size, epsilon,
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out
