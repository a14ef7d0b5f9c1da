"""A quantised weight as the CPU kernels multiply it: packed once at load, never expanded as a whole to keep."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.backends.base import GPTQTensors, GroupedWeight, LinearKernel
from model.backends.cpu.jit import has_bf16_products
from model.backends.cpu.linears.packed_linear import PackedLinear
from model.backends.cpu.linears.packing import pack_gptq_words, pack_groups, pack_integers
from model.backends.cpu.linears.product_ir import BLOCK, INPUTS_PER_VECTOR
from model.backends.cpu.linears.product_kernels import load_kernels
from model.quantization.packing import unpack_rows


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
    zeros = unpack_rows(weight.qzeros.t().contiguous(), weight.bits).t() + weight.zero_offset
    middle = 1 << (weight.bits - 1)
    has_offsets = bool((zeros != middle).any())
    arithmetic = "bf16" if dtype == torch.bfloat16 and has_bf16_products() else "float32"
    kernels = load_kernels(weight.bits, arithmetic, has_offsets=has_offsets)
    if kernels is None:
        return None
    order = None
    if bool((weight.groups[1:] < weight.groups[:-1]).any()):
        order = torch.argsort(weight.groups, stable=True)
        packed = pack_integers(unpack_rows(weight.qweight, weight.bits)[order], weight.bits)
    else:
        packed = pack_gptq_words(weight.qweight, weight.bits)
    scales = weight.scales.float()
    linear = PackedLinear(
        kernels,
        weight.bits,
        packed,
        scales=pack_groups(scales),
        offsets=pack_groups(scales * (middle - zeros)) if has_offsets else None,
        bias=bias,
        order=order,
        dtype=dtype,
        computed_dtype=torch.bfloat16 if arithmetic == "bf16" else torch.float32,
    )
    return linear, linear.num_bytes


def make_grouped_linear(
    weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
) -> tuple[LinearKernel, int] | None:
    """Packs a weight of any other origin for the kernels.

    Args:
        weight: its values, scales and offsets; filled up with outputs of nothing where N is no multiple of 64.
        bias: [N] or None.
        dtype: of the activations.
        wide_results: whether results are float32.

    Returns:
        as `make_gptq_linear`.
    """
    if dtype not in (torch.bfloat16, torch.float32) or weight.group_size % INPUTS_PER_VECTOR[weight.bits]:
        return None
    codes = None if weight.codes is None else tuple(weight.codes.tolist())
    arithmetic = "bf16" if dtype == torch.bfloat16 and has_bf16_products() else "float32"
    scales, offsets = weight.scales.float(), weight.offsets
    middle = 1 << (weight.bits - 1)
    if codes is None and weight.zero != middle:
        shift = scales * (middle - weight.zero)
        offsets = shift if offsets is None else shift.add_(offsets)
    wide = wide_results and arithmetic == "bf16"
    kernels = load_kernels(weight.bits, arithmetic, has_offsets=offsets is not None, wide_results=wide, codes=codes)
    if kernels is None:
        return None
    missing = -len(weight.values) % BLOCK
    linear = PackedLinear(
        kernels,
        weight.bits,
        pack_integers(F.pad(weight.values, (0, 0, 0, missing)).t(), weight.bits),
        scales=pack_groups(F.pad(scales, (0, 0, 0, missing)).t()),
        offsets=None if offsets is None else pack_groups(F.pad(offsets, (0, 0, 0, missing)).t()),
        bias=None if bias is None else F.pad(bias, (0, missing)),
        num_padded=(0, missing),
        dtype=dtype,
        computed_dtype=torch.bfloat16 if arithmetic == "bf16" else torch.float32,
        wide_results=wide_results,
    )
    return linear, linear.num_bytes


def _groups_are_equal(groups: torch.Tensor, num_groups: int, group_size: int) -> bool:
    return bool((torch.bincount(groups, minlength=num_groups) == group_size).all())
