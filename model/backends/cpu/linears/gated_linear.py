"""Two packed weights whose outputs are multiplied, the one's by silu of the other's, in one go."""

from __future__ import annotations

import functools

import torch

from model.backends.base import LinearKernel
from model.backends.cpu.jit import Code, compile_functions, has_bf16_products
from model.backends.cpu.linears.gated_ir import GATED, module_text
from model.backends.cpu.linears.packed_linear import PackedLinear
from model.backends.cpu.rows.row_kernels import DTYPE_NAMES


def make_gated_linear(gate: LinearKernel, up: LinearKernel) -> LinearKernel | None:
    """Joins two products into `up(x) * silu(gate(x))`.

    Returns:
        None where they are no packed weights with as many outputs of one type, or round what they compute once more.
        Bits, groups and what else may differ.
    """
    if not (isinstance(gate, PackedLinear) and isinstance(up, PackedLinear) and gate.has_equal_outputs(up)):
        return None
    code = _code(gate.out_dtype)
    if code is None:
        return None

    def multiply(x: torch.Tensor) -> torch.Tensor:
        of_gate, of_up = gate.begin(x), up.begin(x)
        inner = torch.empty_like(of_gate.out)
        if len(inner):
            addresses = (of_gate.address, of_up.address, inner.data_ptr())
            code.run(GATED, torch.get_num_threads(), *addresses, len(inner))
        return gate.end(inner)

    return multiply


@functools.cache
def _code(dtype: torch.dtype) -> Code | None:
    return compile_functions(module_text(DTYPE_NAMES[dtype], has_bf16=has_bf16_products()), [GATED])
