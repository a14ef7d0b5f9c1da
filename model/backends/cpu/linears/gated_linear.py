"""Two packed weights whose outputs are multiplied, the one's by silu of the other's, in one go."""

from __future__ import annotations

import functools
import struct

import torch

from model.backends.base import LinearKernel
from model.backends.cpu.jit import Code, compile_functions, has_bf16_products
from model.backends.cpu.linears.gated_ir import GATED, GatedKernel
from model.backends.cpu.linears.packed_linear import PackedLinear
from model.backends.cpu.rows.row_kernels import DTYPE_NAMES


def make_gated_linear(gate: LinearKernel, up: LinearKernel) -> GatedLinear | None:
    """Joins two products, or returns None where they are no packed weights, or round what they compute once more."""
    if not (isinstance(gate, PackedLinear) and isinstance(up, PackedLinear)):
        return None
    if not gate.has_equal_outputs(up):
        return None
    code = _code(gate.out_dtype)
    return None if code is None else GatedLinear(gate, up, code)


@functools.cache
def _code(dtype: torch.dtype) -> Code | None:
    return compile_functions(GatedKernel(DTYPE_NAMES[dtype], has_bf16_products()).text, [GATED])


class GatedLinear:
    """Maps [T, K] to [T, N]: `up(x) * silu(gate(x))`.

    Args:
        gate: a product.
        up: another of as many outputs; bits, groups and what else may differ.
        code: of `GatedKernel`.
    """

    def __init__(self, gate: PackedLinear, up: PackedLinear, code: Code) -> None:
        self._gate, self._up, self._code = gate, up, code

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, num_inputs] to [T, num_outputs]."""
        gate, up = self._gate.begin(x), self._up.begin(x)
        inner = torch.empty_like(gate.out)
        if len(inner):
            words = struct.pack("4q", gate.address, up.address, inner.data_ptr(), len(inner))
            self._code.run(GATED, words, torch.get_num_threads())
        return self._gate.end(inner)
