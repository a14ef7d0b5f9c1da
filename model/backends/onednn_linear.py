"""Products by oneDNN with packed weights, where our kernels for a CPU do not serve; torch's operators are private."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from model.backends.base import LinearKernel
from model.backends.huge_pages import use_huge_pages

# oneDNN lays a packed weight out for some expected number of rows; measured flat between 1 and 64.
_PACK_ROWS_HINT = 16


def make_onednn_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearKernel | None:
    """Packs a bfloat16 or float32 weight [N, K]; None for other dtypes, and where torch has no such operators."""
    if weight.dtype not in (torch.bfloat16, torch.float32) or not packed_linear_works():
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS_HINT)
    use_huge_pages(torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed))
    linear = torch.ops.mkldnn._linear_pointwise.default

    def apply(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = linear(x, packed, bias, "none", [], "")
        return out

    return apply


@functools.cache
def packed_linear_works() -> bool:
    """Whether torch still has the operators, and they give F.linear's result."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(48, 32, generator=generator).bfloat16()
        x = torch.randn(3, 32, generator=generator).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS_HINT)
        result = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return torch.allclose(result.float(), F.linear(x, weight).float(), rtol=1e-2, atol=1e-2)
    except (AttributeError, RuntimeError, TypeError):
        return False
