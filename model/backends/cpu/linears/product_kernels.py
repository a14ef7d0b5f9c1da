"""The compiled kernels of one kind of weight."""

from __future__ import annotations

import ctypes
import functools

from model.backends.cpu.jit import Code, compile_functions, has_permutes
from model.backends.cpu.linears.product_ir import ARGUMENTS, MAX_ROWS, SHARE, Kernel, module_text


class CompiledKernels:
    """The kernels of one kind of weight.

    Args:
        functions: address of each kernel, by number of rows.
        share: address of what a thread runs.
        code: that they are in.
    """

    def __init__(self, functions: dict[int, int], share: int, code: Code) -> None:
        self._functions = functions
        self._share = share
        self._code = code

    def tell_rows(self, arguments: ctypes.Array[ctypes.c_int64], num_rows: int) -> None:
        """Fills in those of `product_ir.ARGUMENTS` that are about rows: how many run at a time, in which kernels."""
        num_runs = -(-num_rows // MAX_ROWS)
        height = -(-num_rows // num_runs)  # 8 rows as 4 and 4, not 6 and 2
        few = height * num_runs - num_rows
        functions = self._functions
        arguments[_ROWS : _ROWS + 5] = [height, num_runs - few, few, functions[height], functions[max(1, height - 1)]]

    def run(self, address: int, num_threads: int) -> None:
        """Multiplies, and returns when all threads have done their blocks.

        Args:
            address: of the arguments.
            num_threads: how many threads.
        """
        self._code.parallel(self._share, address, num_threads, 0)


_ROWS = ARGUMENTS.index("rows")


@functools.cache
def load_kernels(
    bits: int,
    arithmetic: str,
    *,
    has_offsets: bool = False,
    wide_results: bool = False,
    codes: tuple[float, ...] | None = None,
) -> CompiledKernels | None:
    """Compiles the kernels of one kind of weight, or returns None where that is not possible.

    Args:
        bits: see `Kernel`.
        arithmetic: see `Kernel`; "bf16" only where `has_bf16_products`.
        has_offsets: see `Kernel`.
        wide_results: see `Kernel`.
        codes: see `Kernel`.
    """
    permutes = has_permutes()
    kernels = [
        Kernel(bits, arithmetic, rows, has_offsets, wide_results, codes, permutes) for rows in range(1, MAX_ROWS + 1)
    ]
    code = compile_functions(module_text(kernels), [*(kernel.name for kernel in kernels), SHARE])
    if code is None:
        return None
    functions = {kernel.rows: code.addresses[kernel.name] for kernel in kernels}
    return CompiledKernels(functions, code.addresses[SHARE], code)
