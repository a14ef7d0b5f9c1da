"""A GPTQ weight as the CPU kernels multiply it: packed once at load, never expanded as a whole to keep."""

from __future__ import annotations

import ctypes

import torch

from model.backends.base import GPTQTensors, LinearKernel
from model.backends.cpu.jit import CompiledKernels, has_bf16_products, load_kernels
from model.backends.cpu.kernel_ir import BLOCK, INPUTS_PER_VECTOR, MAX_ROWS
from model.backends.cpu.packing import pack_groups, pack_integers
from model.backends.huge_pages import use_huge_pages
from model.quantization.words import unpack_rows

# From so many rows on, expanding the weight to a matrix that the libraries multiply is faster.
_EXPAND_FROM_ROWS = 64


def make_gptq_linear(
    weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[LinearKernel, int] | None:
    """Packs a weight for the kernels.

    Args:
        weight: as stored.
        bias: [N] or None.
        dtype: of the activations.

    Returns:
        what maps [T, K] to [T, N], and its bytes; None where the kernels cannot serve: a shape that does not divide,
        groups of unequal size, another dtype, no compiler.
    """
    num_inputs, num_outputs = len(weight.groups), weight.qweight.shape[1]
    num_groups = weight.scales.shape[0]
    group_size = num_inputs // num_groups
    if dtype not in (torch.bfloat16, torch.float32) or num_outputs % BLOCK or num_inputs % num_groups:
        return None
    if group_size % INPUTS_PER_VECTOR[weight.bits] or not _groups_are_equal(weight.groups, num_groups, group_size):
        return None
    zeros = unpack_rows(weight.qzeros.t().contiguous(), weight.bits).t() + 1
    middle = 1 << (weight.bits - 1)
    has_offsets = bool((zeros != middle).any())
    arithmetic = "bf16" if dtype == torch.bfloat16 and has_bf16_products() else "float32"
    kernels = load_kernels(weight.bits, arithmetic, has_offsets)
    if kernels is None:
        return None
    order = None
    values = unpack_rows(weight.qweight, weight.bits)
    if bool((weight.groups[1:] < weight.groups[:-1]).any()):
        order = torch.argsort(weight.groups, stable=True)
        values = values[order]
    scales = weight.scales.float()
    linear = _Linear(
        kernels,
        weight.bits,
        pack_integers(values, weight.bits),
        pack_groups(scales),
        pack_groups(scales * (middle - zeros)) if has_offsets else None,
        torch.zeros(num_outputs) if bias is None else bias.float(),
        order,
        dtype,
        torch.bfloat16 if arithmetic == "bf16" else torch.float32,
    )
    return linear, linear.num_bytes


def _groups_are_equal(groups: torch.Tensor, num_groups: int, group_size: int) -> bool:
    return bool((torch.bincount(groups, minlength=num_groups) == group_size).all())


class _Linear:
    def __init__(
        self,
        kernels: CompiledKernels,
        bits: int,
        packed: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor | None,
        bias: torch.Tensor,
        order: torch.Tensor | None,
        dtype: torch.dtype,
        computed_dtype: torch.dtype,
    ) -> None:
        self._kernels = kernels
        self._tensors = (packed, scales, offsets, bias)  # the kernel has their addresses only
        self._offsets = offsets
        self._bias = bias
        self._order = order
        self._dtype, self._computed_dtype = dtype, computed_dtype
        num_blocks, num_vectors = packed.shape[:2]
        self._num_groups = scales.shape[1]
        self._num_outputs = num_blocks * BLOCK
        self._num_inputs = num_vectors * INPUTS_PER_VECTOR[bits]
        addresses = [0 if t is None else t.data_ptr() for t in self._tensors]
        self._arguments = (ctypes.c_int64 * 12)(
            *addresses,
            *(0, 0, 0),
            *(num_blocks, self._num_groups, num_vectors // self._num_groups, self._num_outputs, self._num_inputs),
        )
        self._address = ctypes.addressof(self._arguments)
        use_huge_pages(packed.data_ptr(), packed.nbytes)
        kept = (*self._tensors, order)
        self.num_bytes = sum(0 if t is None else t.nbytes for t in kept)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self._computed_dtype)
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        num_rows = x.shape[0]
        if num_rows >= _EXPAND_FROM_ROWS:
            return self._multiply_expanded(x).to(self._dtype)
        out = x.new_empty(num_rows, self._num_outputs)
        sums = None
        if self._offsets is not None:
            sums = x.view(num_rows, self._num_groups, -1).sum(-1, dtype=torch.float32)
        num_threads = torch.get_num_threads()
        num_calls = -(-num_rows // MAX_ROWS)
        row = 0
        for call in range(num_calls):
            count = (num_rows - row) // (num_calls - call)  # 12 rows as 6 and 6, not 8 and 4
            self._arguments[4] = x.data_ptr() + row * self._num_inputs * x.itemsize
            self._arguments[5] = 0 if sums is None else sums.data_ptr() + row * self._num_groups * 4
            self._arguments[6] = out.data_ptr() + row * self._num_outputs * out.itemsize
            self._kernels.run(count, self._address, num_threads)
            row += count
        return out.to(self._dtype)

    def _multiply_expanded(self, x: torch.Tensor) -> torch.Tensor:
        weight = x.new_empty(self._num_inputs, self._num_outputs)
        self._arguments[6] = weight.data_ptr()
        self._kernels.run(0, self._address, torch.get_num_threads())
        return torch.mm(x, weight).add_(self._bias.to(x.dtype))
