"""A packed weight and the kernels that multiply it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.backends.cpu.linears.packing import pack_floats
from model.backends.cpu.linears.product_ir import ARGUMENTS, BLOCK, INPUTS_PER_VECTOR, SHARE, UNROLL
from model.backends.cpu.linears.product_kernels import ProductKernels, load_kernels
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
        None where the kernels cannot serve: another dtype, no compiler.
    """
    if weight.dtype not in (torch.bfloat16, torch.float32):
        return None
    bits = 8 * weight.itemsize
    kernels = load_kernels(bits, weight.dtype, wide_results=wide_results)
    if kernels is None:
        return None
    num_outputs, num_inputs = weight.shape
    missing = (-num_inputs % (UNROLL[bits] * INPUTS_PER_VECTOR[bits]), -num_outputs % BLOCK)
    if any(missing):
        weight = F.pad(weight, (0, missing[0], 0, missing[1]))
        bias = None if bias is None else F.pad(bias, (0, missing[1]))
    return PackedLinear(
        kernels,
        pack_floats(weight),
        bias=bias,
        dtype=weight.dtype,
        wide_results=wide_results,
        num_padded=missing,
    )


class BegunProduct(NamedTuple):
    """A product whose arguments are filled in, and whose kernels have not run yet.

    Attributes:
        address: where the kernels' arguments are.
        out: [T, N], where they write results.
        inputs: kept because the arguments have their addresses only.
    """

    address: int
    out: torch.Tensor
    inputs: tuple[torch.Tensor | None, ...]


class PackedLinear:
    """Maps [T, K] to [T, N].

    Args:
        kernels: the kernels for such weights.
        packed: [N / 64, K / inputs, 4, 64] uint8; see packing.py.
        scales: [N / 64, G, 64] float32, of integers.
        offsets: the same, `scale * (middle - zero)`, where zeros are not all in the middle.
        bias: [N] or None.
        order: [K] int64: which input stands at each place, where they were sorted by group.
        dtype: dtype of activations and results.
        wide_results: whether results are float32 though the activations are not.
        num_padded: how many of the packed inputs, and of the packed outputs, are only there to fill up.
    """

    def __init__(
        self,
        kernels: ProductKernels,
        packed: torch.Tensor,
        *,
        dtype: torch.dtype,
        scales: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
        wide_results: bool = False,
        num_padded: tuple[int, int] = (0, 0),
    ) -> None:
        self._kernels = kernels
        num_blocks, num_vectors = packed.shape[:2]
        self._num_groups = 1 if scales is None else scales.shape[1]
        self._num_outputs = num_blocks * BLOCK
        self._num_inputs = num_vectors * INPUTS_PER_VECTOR[kernels.bits]
        self._bias = torch.zeros(self._num_outputs) if bias is None else bias.float()
        self._offsets, self._order, self._num_padded = offsets, order, num_padded
        self._result_dtype = torch.float32 if wide_results else dtype
        self.out_dtype = torch.float32 if wide_results else kernels.dtype
        self._tensors = (packed, scales, offsets, self._bias)  # the kernels have their addresses only
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))(
            *(0 if t is None else t.data_ptr() for t in self._tensors),
            *(0, 0, 0),
            *(num_blocks, self._num_groups, num_vectors // self._num_groups // UNROLL[kernels.bits]),
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
            self._kernels.code.run_at(SHARE, torch.get_num_threads(), begun.address)
        return self.end(begun.out)

    def begin(self, x: torch.Tensor) -> BegunProduct:
        """Fills in the kernels' arguments for x [T, num_inputs]."""
        x = x.to(self._kernels.dtype)
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
                functions = row_functions(self._kernels.dtype)
                assert functions is not None, "kernels for products, and none for rows"
                sums = functions.group_sums(x, self._num_groups)
                arguments[_X_SUMS] = sums.data_ptr()
            self._kernels.tell_rows(arguments, num_rows)
        return BegunProduct(ctypes.addressof(self._arguments), out, (x, sums))

    def end(self, out: torch.Tensor) -> torch.Tensor:
        """Results without the outputs that fill up, in the dtype that is wanted."""
        if self._num_padded[1]:
            out = out[:, : -self._num_padded[1]].contiguous()
        return out.to(self._result_dtype)
