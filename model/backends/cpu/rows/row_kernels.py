"""Runs the kernels for what a layer does between its products."""

from __future__ import annotations

import ctypes
import functools
import struct

import torch

from model.backends.cpu.jit import Code, compile_functions, has_bf16_products
from model.backends.cpu.rows.row_ir import FUNCTIONS, RowKernels

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
# Numbers below which one thread is done before a second one would be awake.
NUMBERS_FOR_THREADS = 1 << 14


class RowFunctions:
    """The compiled functions for one type of activations.

    Args:
        code: of `RowKernels`.
    """

    def __init__(self, code: Code) -> None:
        self._code = code
        self._epsilons: dict[float, ctypes.c_float] = {}

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """[T, hidden] float32, contiguous, normalised; see `Backend.rms_norm`."""
        out = torch.empty(x.shape, dtype=weight.dtype)
        self._run_norm("norm", None, x, weight, out, epsilon)
        return out

    def add_norm(
        self, delta: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Adds delta, of the weight's type, to the residual in place, and returns the normalised sum."""
        out = torch.empty(residual.shape, dtype=weight.dtype)
        self._run_norm("add_norm", delta, residual, weight, out, epsilon)
        return out

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`up * silu(gate)`, both [T, N] with adjacent columns."""
        rows, width = gate.shape
        out = torch.empty(rows, width, dtype=gate.dtype)
        self._run(
            "silu_mul",
            rows * width,
            (gate, up, out),
            (rows, width, gate.stride(0), up.stride(0)),
        )
        return out

    def group_sums(self, x: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Sums of each row's groups: [T, K], contiguous, to [T, num_groups] float32."""
        rows, width = x.shape
        out = torch.empty(rows, num_groups)
        self._run("sums", x.numel(), (x, out), (rows * num_groups, width // num_groups))
        return out

    def _run_norm(
        self,
        name: str,
        delta: torch.Tensor | None,
        residual: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        epsilon: float,
    ) -> None:
        held = self._epsilons.get(epsilon)
        if held is None:
            held = self._epsilons[epsilon] = ctypes.c_float(epsilon)
        addresses = (delta if delta is not None else 0, residual, weight, out, ctypes.addressof(held))
        self._run(name, out.numel(), addresses, tuple(out.shape))

    def _run(
        self, name: str, num_numbers: int, addresses: tuple[torch.Tensor | int, ...], numbers: tuple[int, ...]
    ) -> None:
        found = [each if isinstance(each, int) else each.data_ptr() for each in addresses]
        words = struct.pack(f"{len(found) + len(numbers)}q", *found, *numbers)
        self._code.run(name, words, 1 if num_numbers < NUMBERS_FOR_THREADS else torch.get_num_threads())


@functools.cache
def row_functions(dtype: torch.dtype) -> RowFunctions | None:
    """The functions for activations of a type, or None where they cannot serve: another type, no compiler."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    kernels = RowKernels(DTYPE_NAMES[dtype], has_bf16=has_bf16_products())
    code = compile_functions(kernels.text, list(FUNCTIONS))
    return None if code is None else RowFunctions(code)
