"""A quantised weight as the CPU kernels multiply it: packed once at load, never expanded as a whole to keep."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.backends.base import LinearKernel
from model.backends.cpu.linears.packed_linear import PackedLinear
from model.backends.cpu.linears.packing import pack_gptq_words, pack_groups, pack_integers
from model.backends.cpu.linears.product_ir import BLOCK, INPUTS_PER_VECTOR
from model.backends.cpu.linears.product_kernels import load_kernels
from model.backends.weights import GPTQTensors, GroupedWeight
from model.quantization.packing import unpack_rows


def make_gptq_linear(
    weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
) -> tuple[LinearKernel, int] | None:
    """Packs a weight for the kernels; see `Backend.prepare_gptq_linear`.

    Returns:
        None where the kernels cannot serve: a shape that does not divide, groups of unequal size, another dtype, no
        compiler.
    """
    num_inputs, num_outputs = len(weight.groups), weight.qweight.shape[1]
    if dtype not in (torch.bfloat16, torch.float32) or num_outputs % BLOCK or not weight.has_equal_groups():
        return None
    if num_inputs // len(weight.scales) % INPUTS_PER_VECTOR[weight.bits]:
        return None
    zeros = unpack_rows(weight.qzeros.t().contiguous(), weight.bits).t() + weight.zero_offset
    middle = 1 << (weight.bits - 1)
    has_offsets = bool((zeros != middle).any())
    kernels = load_kernels(weight.bits, dtype, has_offsets=has_offsets)
    if kernels is None:
        return None
    order = weight.order_by_group()
    if order is None:
        packed = pack_gptq_words(weight.qweight, weight.bits)
    else:
        packed = pack_integers(unpack_rows(weight.qweight, weight.bits)[order], weight.bits)
    scales = weight.scales.float()
    linear = PackedLinear(
        kernels,
        packed,
        scales=pack_groups(scales),
        offsets=pack_groups(scales * (middle - zeros)) if has_offsets else None,
        bias=bias,
        order=order,
        dtype=dtype,
    )
    return linear, linear.num_bytes


def make_grouped_linear(
    weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
) -> tuple[LinearKernel, int] | None:
    """Packs a weight of any other origin; see `Backend.prepare_grouped_linear`.

    Where N is no multiple of 64 it is filled up with outputs of nothing.

    Returns:
        None where the kernels cannot serve: groups that do not divide, another dtype, no compiler.
    """
    if dtype not in (torch.bfloat16, torch.float32) or weight.group_size % INPUTS_PER_VECTOR[weight.bits]:
        return None
    codes = None if weight.codes is None else tuple(weight.codes.tolist())
    scales, offsets = weight.scales.float(), weight.offsets
    middle = 1 << (weight.bits - 1)
    if codes is None and weight.zero != middle:
        shift = scales * (middle - weight.zero)
        offsets = shift if offsets is None else shift.add_(offsets)
    kernels = load_kernels(
        weight.bits, dtype, has_offsets=offsets is not None, wide_results=wide_results, codes=codes
    )
    if kernels is None:
        return None
    missing = -len(weight.values) % BLOCK
    linear = PackedLinear(
        kernels,
        pack_integers(F.pad(weight.values, (0, 0, 0, missing)).t(), weight.bits),
        scales=pack_groups(F.pad(scales, (0, 0, 0, missing)).t()),
        offsets=None if offsets is None else pack_groups(F.pad(offsets, (0, 0, 0, missing)).t()),
        bias=None if bias is None else F.pad(bias, (0, missing)),
        num_padded=(0, missing),
        dtype=dtype,
        wide_results=wide_results,
    )
    return linear, linear.num_bytes
