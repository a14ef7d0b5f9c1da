"""The compiled kernels of one kind of weight."""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch

from model.backends.cpu.jit import Code, compile_functions, has_bf16_products, has_permutes
from model.backends.cpu.linears.product_ir import ARGUMENTS, MAX_ROWS, SHARE, Kernel, module_text

_ROWS = ARGUMENTS.index("rows")


class ProductKernels(NamedTuple):
    """Kernels for 1 to `MAX_ROWS` rows.

    Attributes:
        bits: bits of a weight.
        code: the kernels, and the function `SHARE` that calls them.
        addresses: where each kernel is, by its number of rows less one.
        dtype: dtype of the activations that they take, bfloat16 or float32.
    """

    bits: int
    code: Code
    addresses: list[int]
    dtype: torch.dtype

    def tell_rows(self, arguments: ctypes.Array[ctypes.c_int64], num_rows: int) -> None:
        """Fills in which kernels take how many rows at a time, of `product_ir.ARGUMENTS`."""
        num_runs = -(-num_rows // MAX_ROWS)
        height = -(-num_rows // num_runs)  # 8 rows as 4 and 4, not 6 and 2
        few = height * num_runs - num_rows
        kernels = self.addresses[height - 1], self.addresses[max(1, height - 1) - 1]
        arguments[_ROWS : _ROWS + 5] = [height, num_runs - few, few, *kernels]


@functools.cache
def load_kernels(
    bits: int,
    dtype: torch.dtype,
    *,
    has_offsets: bool = False,
    wide_results: bool = False,
    codes: tuple[float, ...] | None = None,
) -> ProductKernels | None:
    """Compiles the kernels of one kind of weight, or returns None where that is not possible.

    Args:
        bits: see `Kernel`, likewise the others.
        dtype: dtype of the activations; where the processor has no products of bfloat16 the kernels take float32.
    """
    is_bf16 = dtype == torch.bfloat16 and has_bf16_products()
    permutes = has_permutes()
    kernels = [
        Kernel(bits, is_bf16, rows, has_offsets, wide_results and is_bf16, codes, permutes)
        for rows in range(1, MAX_ROWS + 1)
    ]
    code = compile_functions(module_text(kernels), [*(kernel.name for kernel in kernels), SHARE])
    if code is None:
        return None
    addresses = [code.addresses[kernel.name] for kernel in kernels]
    return ProductKernels(bits, code, addresses, torch.bfloat16 if is_bf16 else torch.float32)
