"""Turns packed integers into numbers: inside other kernels, and a slice of a weight at a time for cuBLAS."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.gptq_layout import PackedWeight
from model.backends.cuda.kernels.dependent_launch import wait_for_predecessor
from model.backends.cuda.kernels.launch import launch


@triton.jit
def signed_values(words, zeros, PLACE: tl.constexpr, BITS: tl.constexpr):
    """Returns the integers at a place of the words less their zero, float32 and exact, by no conversion instruction.

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
    """Returns the levels that the values at one place of the words stand for, float32; they are scaled later."""
    if HAS_CODES:
        return tl.load(codes_ptr + ((words >> (PLACE * BITS)) & ((1 << BITS) - 1)))
    else:
        return signed_values(words, zeros, PLACE, BITS)


# Two values of a word that stand 16 bits apart, as a pair of numbers in the halves of a register: their bits are made
# part of the mantissas of 128 (bfloat16) or 1024 (float16), and that and the zero are taken off. Nothing rounds.
_PAIR = """{{
    .reg .b32 pair, one;
    mov.b32 one, {magic};
    lop3.b32 pair, $2, 0x000f000f, one, 0xea;
    mov.b32 one, {one};
    fma.rn.{type}x2 pair, pair, one, $3;
    mov.b32 {{$0, $1}}, pair;
}}"""
_BF16_PAIR = tl.constexpr(_PAIR.format(magic="0x43004300", one="0x3f803f80", type="bf16"))
_FP16_PAIR = tl.constexpr(_PAIR.format(magic="0x64006400", one="0x3c003c00", type="f16"))

# The numbers that `pair_of_values` makes.
IN_FLOAT32, IN_BFLOAT16, IN_FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def pair_of_values(
    words, zeros, codes_ptr, PLACE: tl.constexpr, BITS: tl.constexpr, HAS_CODES: tl.constexpr, UNPACKING: tl.constexpr
):
    """Returns the levels of the values at a place of the words, and of those half a word further on.

    UNPACKING says in which numbers they are: float32, or (4 bits without codes) two at a time in bfloat16 or float16.
    """
    if UNPACKING == IN_FLOAT32:
        low = levels(words, zeros, codes_ptr, PLACE, BITS, HAS_CODES)
        high = levels(words, zeros, codes_ptr, PLACE + 16 // BITS, BITS, HAS_CODES)
    else:
        shifted = words >> (PLACE * BITS) if PLACE > 0 else words
        if UNPACKING == IN_BFLOAT16:
            less = (zeros.to(tl.int32) + 0xC300) * 0x10001  # twice -(128 + zero)
            low, high = tl.inline_asm_elementwise(
                _BF16_PAIR, "=h,=h,r,r", [shifted, less], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=1
            )
        else:
            less = (zeros.to(tl.int32) + 0xE400) * 0x10001  # twice -(1024 + zero)
            low, high = tl.inline_asm_elementwise(
                _FP16_PAIR, "=h,=h,r,r", [shifted, less], dtype=(tl.float16, tl.float16), is_pure=True, pack=1
            )
    return low, high


@triton.jit
def load_zeros(zeros_ptr, group, out_features, columns, mask, HAS_ZEROS: tl.constexpr, BITS: tl.constexpr):
    """Loads the zeros of groups, float32; where none are stored, the middle of the range."""
    if HAS_ZEROS:
        return tl.load(zeros_ptr + group * out_features + columns, mask=mask, other=0).to(tl.float32)
    else:
        return tl.full(columns.shape, 1 << (BITS - 1), tl.float32)


@triton.jit
def _dequantize_kernel(
    words_ptr, scales_ptr, zeros_ptr, offsets_ptr, codes_ptr, out_ptr,
    in_features, out_features, first_column, num_columns, num_tiles,
    BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, HAS_ZEROS: tl.constexpr, HAS_OFFSETS: tl.constexpr,
    HAS_CODES: tl.constexpr, ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    NUM_SLICES: tl.constexpr = 16 // BITS
    tile = tl.program_id(0)
    local = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    columns = first_column + local
    is_column = local < num_columns
    places = words_ptr + columns.to(tl.int64)[:, None] * (num_tiles * ROWS) + tile * ROWS + tl.arange(0, ROWS)[None, :]
    words = tl.load(places, mask=is_column[:, None], other=0)
    for place in tl.static_range(NUM_SLICES):
        first_input = (tile * NUM_SLICES + place) * 2 * ROWS
        group = tl.minimum(first_input, in_features - 1) // GROUP_SIZE
        scales = tl.load(scales_ptr + group * out_features + columns, mask=is_column, other=0.0)
        zeros = load_zeros(zeros_ptr, group, out_features, columns, is_column, HAS_ZEROS, BITS)[:, None]
        low, high = pair_of_values(words, zeros, codes_ptr, place, BITS, HAS_CODES, IN_FLOAT32)
        values = tl.join(low, high).reshape(BLOCK_COLUMNS, 2 * ROWS) * scales.to(tl.float32)[:, None]
        if HAS_OFFSETS:
            offsets = offsets_ptr + group * out_features + columns
            values += tl.load(offsets, mask=is_column, other=0.0)[:, None]
        inputs = first_input + tl.arange(0, 2 * ROWS)
        out = out_ptr + local.to(tl.int64)[:, None] * in_features + inputs[None, :]
        mask = is_column[:, None] & (inputs < in_features)[None, :]
        tl.store(out, values.to(out_ptr.dtype.element_ty), mask=mask)


def compiled_for(weight: PackedWeight) -> dict[str, int]:
    """Returns the compile-time arguments that a weight decides."""
    return {
        "BITS": weight.bits,
        "GROUP_SIZE": weight.group_size,
        "HAS_ZEROS": weight.zeros is not None,
        "HAS_OFFSETS": weight.offsets is not None,
        "HAS_CODES": weight.codes is not None,
        "ROWS": weight.rows_per_tile,
    }


def dequantize(weight: PackedWeight, dtype: torch.dtype, first_column: int, num_columns: int) -> torch.Tensor:
    """Expands some outputs of a weight: products in float32, rounded once.

    Returns:
        [num_columns, K], inputs in the weight's own order.
    """
    out = torch.empty((num_columns, weight.in_features), dtype=dtype, device=weight.words.device)
    launch(
        _dequantize_kernel,
        (weight.num_tiles, triton.cdiv(num_columns, 128)),
        weight.words, weight.scales, weight.zeros, weight.offsets, weight.codes, out,
        weight.in_features, weight.out_features, first_column, num_columns, weight.num_tiles,
        **compiled_for(weight), BLOCK_COLUMNS=128, num_warps=4,
    )  # fmt: skip
    return out
