"""A packed weight and the kernels that multiply it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.backends.cpu.jit import has_bf16_products
from model.backends.cpu.linears.packing import pack_bfloat16, pack_float32
from model.backends.cpu.linears.product_ir import ARGUMENTS, BLOCK, INPUTS_PER_VECTOR, UNROLL
from model.backends.cpu.linears.product_kernels import CompiledKernels, load_kernels
from model.backends.cpu.rows.row_kernels import row_functions
from model.backends.huge_pages import use_huge_pages

_X, _X_SUMS, _OUT = (ARGUMENTS.index(name) for name in ("x", "x_sums", "out"))


def make_dense_linear(weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool) -> PackedLinear | None:
    """Packs a bfloat16 or float32 weight for the kernels.

    Args:
        weight: [N, K]; filled up with zeros where N or K is not a multiple of what a kernel takes.
        bias: [N] or None.
        wide_results: whether results of a bfloat16 weight are float32.

    Returns:
        None where the kernels cannot serve: another type, no compiler.
    """
    if weight.dtype not in (torch.bfloat16, torch.float32):
        return None
    bits = 8 * weight.itemsize
    arithmetic = "bf16" if bits == 16 and has_bf16_products() else "float32"
    wide_results &= bits == 16
    kernels = load_kernels(bits, arithmetic, wide_results=wide_results and arithmetic == "bf16")
    if kernels is None:
        return None
    num_outputs, num_inputs = weight.shape
    missing = (-num_inputs % (UNROLL[bits] * INPUTS_PER_VECTOR[bits]), -num_outputs % BLOCK)
    if any(missing):
        weight = F.pad(weight, (0, missing[0], 0, missing[1]))
        bias = None if bias is None else F.pad(bias, (0, missing[1]))
    return PackedLinear(
        kernels,
        bits,
        pack_bfloat16(weight) if bits == 16 else pack_float32(weight),
        bias=bias,
        dtype=weight.dtype,
        computed_dtype=torch.bfloat16 if arithmetic == "bf16" else torch.float32,
        wide_results=wide_results,
        num_padded=missing,
    )


class BegunProduct(NamedTuple):
    """What a product is about to do.

    Attributes:
        address: of the kernels' arguments.
        out: where results belong, [T, N].
        inputs: that the arguments have the addresses of.
    """

    address: int
    out: torch.Tensor
    inputs: tuple[torch.Tensor | None, ...]


class PackedLinear:
    """Maps [T, K] to [T, N].

    Args:
        kernels: for these bits.
        bits: of a weight.
        packed: [N / 64, K / inputs, 4, 64] uint8; see packing.py.
        scales: [N / 64, G, 64] float32, of integers.
        offsets: the same, `scale * (middle - zero)`, where zeros are not all in the middle.
        bias: [N] or None.
        order: [K] int64: which input stands at each place, where they were sorted by group.
        dtype: of activations and results.
        computed_dtype: what the kernels take, if it is another.
        wide_results: whether results are float32 though the activations are not.
        num_padded: how many of the packed inputs, and of the packed outputs, there are not.
    """

    def __init__(
        self,
        kernels: CompiledKernels,
        bits: int,
        packed: torch.Tensor,
        *,
        dtype: torch.dtype,
        scales: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
        computed_dtype: torch.dtype | None = None,
        wide_results: bool = False,
        num_padded: tuple[int, int] = (0, 0),
    ) -> None:
        self._kernels = kernels
        num_blocks, num_vectors = packed.shape[:2]
        self._num_groups = 1 if scales is None else scales.shape[1]
        self._num_outputs = num_blocks * BLOCK
        self._num_inputs = num_vectors * INPUTS_PER_VECTOR[bits]
        self._bias = torch.zeros(self._num_outputs) if bias is None else bias.float()
        self._offsets, self._order, self._num_padded = offsets, order, num_padded
        self._computed_dtype = computed_dtype or dtype
        self._result_dtype = torch.float32 if wide_results else dtype
        self.out_dtype = torch.float32 if wide_results else self._computed_dtype
        self._tensors = (packed, scales, offsets, self._bias)  # the kernels have their addresses only
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))(
            *(0 if t is None else t.data_ptr() for t in self._tensors),
            *(0, 0, 0),
            *(num_blocks, self._num_groups, num_vectors // self._num_groups // UNROLL[bits]),
            *(self._num_outputs, self._num_inputs),
        )
        use_huge_pages(packed.data_ptr(), packed.nbytes)
        self.num_bytes = sum(0 if t is None else t.nbytes for t in (*self._tensors, order))

    def has_equal_outputs(self, other: PackedLinear) -> bool:
        """Whether another product gives as many outputs of the same type, and neither rounds them once more."""
        kinds = {(each.out_dtype, each._result_dtype, each._num_outputs, each._num_padded[1]) for each in (self, other)}
        return len(kinds) == 1 and self.out_dtype == self._result_dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, num_inputs] to [T, num_outputs]."""
        begun = self.begin(x)
        if len(x):
            self._kernels.run(begun.address, torch.get_num_threads())
        return self.end(begun.out)

    def begin(self, x: torch.Tensor) -> BegunProduct:
        """Tells the kernels what to multiply, [T, num_inputs], and where results belong."""
        x = x.to(self._computed_dtype)
        if self._num_padded[0]:
            x = F.pad(x, (0, self._num_padded[0]))
        x = x.contiguous() if self._order is None else x.index_select(1, self._order)
        num_rows = x.shape[0]
        out = torch.empty(num_rows, self._num_outputs, dtype=self.out_dtype)
        sums = None
        if num_rows:
            arguments = self._arguments
            arguments[_X], arguments[_OUT] = x.data_ptr(), out.data_ptr()
            if self._offsets is not None:
                sums = self._group_sums(x)
                arguments[_X_SUMS] = sums.data_ptr()
            self._kernels.tell_rows(arguments, num_rows)
        return BegunProduct(ctypes.addressof(self._arguments), out, (x, sums))

    def end(self, out: torch.Tensor) -> torch.Tensor:
        """Results as they are wanted: without what was filled up, and of the right type."""
        if self._num_padded[1]:
            out = out[:, : -self._num_padded[1]].contiguous()
        return out.to(self._result_dtype)

    def _group_sums(self, x: torch.Tensor) -> torch.Tensor:
        functions = row_functions(self._computed_dtype)
        assert functions is not None, "kernels for products, and none for rows"
        return functions.group_sums(x, self._num_groups)
