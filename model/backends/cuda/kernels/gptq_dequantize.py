"""Packed integers to numbers: inside other kernels, and a slice of a weight at a time for cuBLAS to multiply."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.gptq_layout import ROWS, PackedWeight
from model.backends.cuda.kernels.dependent_launch import wait_for_predecessor
from model.backends.cuda.kernels.launch import launch


@triton.jit
def signed_values(words, zeros, PLACE: tl.constexpr, BITS: tl.constexpr):
    """Integers less their zero (which broadcasts) at one place of the words, float32 and exact, without conversion.

    The value's bits are left where they stand in the word and made part of the mantissa of 2 ** 23. Places that would
    reach into the exponent take one shift of the word, which all of them share.
    """
    PER_MANTISSA: tl.constexpr = 5 if BITS == 4 else 2
    if PLACE >= PER_MANTISSA:
        words = words >> (PER_MANTISSA * BITS)
    SHIFT: tl.constexpr = (PLACE % PER_MANTISSA) * BITS
    MASK: tl.constexpr = ((1 << BITS) - 1) << SHIFT
    WEIGHT: tl.constexpr = 1.0 / (1 << SHIFT)
    wide = ((words & MASK) | 0x4B000000).to(tl.float32, bitcast=True)
    # Powers of two and integers below 2 ** 24: neither the product nor the difference rounds.
    return wide * WEIGHT - (zeros + 8388608.0 * WEIGHT)


@triton.jit
def levels(words, zeros, codes_ptr, PLACE: tl.constexpr, BITS: tl.constexpr, HAS_CODES: tl.constexpr):
    """What the values at one place of the words stand for before they are scaled, float32."""
    if HAS_CODES:
        return tl.load(codes_ptr + ((words >> (PLACE * BITS)) & ((1 << BITS) - 1)))
    else:
        return signed_values(words, zeros, PLACE, BITS)


@triton.jit
def load_zeros(zeros_ptr, group, out_features, columns, mask, HAS_ZEROS: tl.constexpr, BITS: tl.constexpr):
    """The zeros of one group, float32; where none are stored, the middle of the range."""
    if HAS_ZEROS:
        places = zeros_ptr + group.to(tl.int64) * out_features + columns
        return tl.load(places, mask=mask, other=0).to(tl.float32)
    else:
        return tl.full(columns.shape, 1 << (BITS - 1), tl.float32)


@triton.jit
def _dequantize_kernel(
    words_ptr,
    scales_ptr,
    zeros_ptr,
    offsets_ptr,
    codes_ptr,
    out_ptr,
    in_features,
    out_features,
    first_column,
    num_columns,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    HAS_CODES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(IS_DEPENDENT)
    PER_WORD: tl.constexpr = 32 // BITS
    tile = tl.program_id(0)
    local = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    columns = first_column + local
    rows = tl.arange(0, ROWS)
    is_column = local < num_columns
    places = words_ptr + (tile * ROWS + rows).to(tl.int64)[:, None] * out_features + columns[None, :]
    words = tl.load(places, mask=is_column[None, :], other=0)
    for place in tl.static_range(PER_WORD):
        first_input = (tile * PER_WORD + place) * ROWS
        group = tl.minimum(first_input, in_features - 1) // GROUP_SIZE
        scales = tl.load(scales_ptr + group.to(tl.int64) * out_features + columns, mask=is_column, other=0.0)
        zeros = load_zeros(zeros_ptr, group, out_features, columns, is_column, HAS_ZEROS, BITS)[None, :]
        values = levels(words, zeros, codes_ptr, place, BITS, HAS_CODES) * scales.to(tl.float32)[None, :]
        if HAS_OFFSETS:
            offsets = offsets_ptr + group.to(tl.int64) * out_features + columns
            values += tl.load(offsets, mask=is_column, other=0.0)[None, :]
        inputs = first_input + rows
        out = out_ptr + inputs.to(tl.int64)[:, None] * num_columns + local[None, :]
        mask = (inputs < in_features)[:, None] & is_column[None, :]
        tl.store(out, values.to(out_ptr.dtype.element_ty), mask=mask)


def dequantize(weight: PackedWeight, dtype: torch.dtype, first_column: int, num_columns: int) -> torch.Tensor:
    """Expands some outputs of a weight: products in float32, rounded once.

    Returns:
        [K, num_columns], its rows in the weight's own order of inputs.
    """
    out = torch.empty((weight.in_features, num_columns), dtype=dtype, device=weight.words.device)
    launch(
        _dequantize_kernel,
        (weight.num_tiles, triton.cdiv(num_columns, 128)),
        weight.words,
        weight.scales,
        weight.zeros,
        weight.offsets,
        weight.codes,
        out,
        weight.in_features,
        weight.out_features,
        first_column,
        num_columns,
        BITS=weight.bits,
        GROUP_SIZE=weight.group_size,
        HAS_ZEROS=weight.zeros is not None,
        HAS_OFFSETS=weight.offsets is not None,
        HAS_CODES=weight.codes is not None,
        ROWS=ROWS,
        BLOCK_COLUMNS=128,
        num_warps=4,
    )
    return out
