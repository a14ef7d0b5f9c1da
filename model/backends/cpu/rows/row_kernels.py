"""Runs the kernels for what a layer does between its products."""

from __future__ import annotations

import functools
import struct

import torch

from model.backends.cpu.jit import Code, compile_functions, has_bf16_products
from model.backends.cpu.rows.row_ir import FUNCTIONS, module_text

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
# With fewer numbers one thread is done before a second one is awake.
NUMBERS_FOR_THREADS = 1 << 14


class RowFunctions:
    """The compiled functions of row_ir.py for one dtype of activations."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """[T, hidden] float32, contiguous, normalised; see `Backend.rms_norm`."""
        out = torch.empty(x.shape, dtype=weight.dtype)
        self._run("norm", (x, x, weight, out), (_float_bits(epsilon), *x.shape))  # the first is not looked at
        return out

    def add_norm(
        self, delta: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Adds delta, of the weight's dtype, to the float32 residual in place, and returns the normalised sum."""
        out = torch.empty(residual.shape, dtype=weight.dtype)
        self._run("add_norm", (delta, residual, weight, out), (_float_bits(epsilon), *out.shape))
        return out

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`up * silu(gate)`, both [T, N] with adjacent columns."""
        out = torch.empty(gate.shape, dtype=gate.dtype)
        self._run("silu_mul", (gate, up, out), (*gate.shape, gate.stride(0), up.stride(0)))
        return out

    def group_sums(self, x: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Sums of each row's groups: [T, K], contiguous, to [T, num_groups] float32."""
        rows, width = x.shape
        out = torch.empty(rows, num_groups)
        self._run("sums", (x, out), (rows * num_groups, width // num_groups))
        return out

    def _run(self, name: str, tensors: tuple[torch.Tensor, ...], numbers: tuple[int, ...]) -> None:
        num_threads = 1 if tensors[0].numel() < NUMBERS_FOR_THREADS else torch.get_num_threads()
        self._code.run(name, num_threads, *(tensor.data_ptr() for tensor in tensors), *numbers)


@functools.cache
def _float_bits(value: float) -> int:
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits


@functools.cache
def row_functions(dtype: torch.dtype) -> RowFunctions | None:
    """The functions for a dtype of activations, or None where they cannot serve: another dtype, no compiler."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    code = compile_functions(module_text(DTYPE_NAMES[dtype], has_bf16=has_bf16_products()), FUNCTIONS)
    return None if code is None else RowFunctions(code)
