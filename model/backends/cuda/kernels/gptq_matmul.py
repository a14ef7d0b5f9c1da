"""Products with 4- and 8-bit weights and 16- or 32-bit activations.

Three ways, by the number of rows:
- one row: plain float32 arithmetic on vectors. Integers become floats by writing their bits into a mantissa, so a
  weight costs one logical operation and two multiply-adds: a conversion each would take longer than the memory does.
- a few rows: tiles are unpacked to the activations' dtype as integers (exact), multiplied on tensor cores, and scaled
  in float32 once a group; less is rounded than in a dequantised weight.
- many rows: slices of the weight are dequantised into a buffer that stays in the L2 cache, for cuBLAS to multiply.
The first two split the inputs over programs, and a second kernel adds the parts in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from model.backends.cuda.gptq_layout import ROWS, PackedWeight
from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.gptq_dequantize import dequantize, load_zeros, signed_values
from model.backends.cuda.kernels.launch import launch, next_power_of_2, zeros_for_counting

# From here on a product is bound by arithmetic, and cuBLAS's is worth a pass over the weight.
MAX_ROWS_OF_TILES = 128

# What is dequantised at a time: a fraction of an H200's 50 MB of L2.
_SLICE_BYTES = 24 << 20

_TARGET_PROGRAMS = 1056
_MAX_SPLITS = 16

_ONE_ROW_COLUMNS = 128


@triton.jit
def _load_words(words_ptr, tile, columns, is_column, out_features, ROWS: tl.constexpr):
    word_rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    return tl.load(words_ptr + word_rows[:, None] * out_features + columns[None, :], mask=is_column[None, :], other=0)


@triton.jit
def _times_x(
    words,
    x_ptr,
    scales_ptr,
    zeros_ptr,
    permutation_ptr,
    tile,
    columns,
    is_column,
    in_features,
    out_features,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SLICES_PER_SCALE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile's products with the row, [ROWS, columns] float32, not yet summed."""
    PER_WORD: tl.constexpr = 32 // BITS
    rows = tl.arange(0, ROWS)
    total = tl.zeros(words.shape, tl.float32)
    for slice_of_scale in tl.static_range(PER_WORD // SLICES_PER_SCALE):
        first_input = (tile * PER_WORD + slice_of_scale * SLICES_PER_SCALE) * ROWS
        group = tl.minimum(first_input, in_features - 1) // GROUP_SIZE
        scales = tl.load(scales_ptr + group.to(tl.int64) * out_features + columns, mask=is_column, other=0.0)
        zeros = load_zeros(zeros_ptr, group, out_features, columns, is_column, HAS_ZEROS, BITS)[None, :]
        part = tl.zeros(words.shape, tl.float32)
        for index in tl.static_range(SLICES_PER_SCALE):
            inputs = first_input + index * ROWS + rows
            is_input = inputs < in_features
            sources = inputs
            if HAS_PERMUTATION:
                sources = tl.load(permutation_ptr + inputs, mask=is_input, other=0)
            x = tl.load(x_ptr + sources, mask=is_input, other=0.0).to(tl.float32)
            part += x[:, None] * signed_values(words, zeros, slice_of_scale * SLICES_PER_SCALE + index, BITS)
        total += part * scales.to(tl.float32)[None, :]
    return total


@triton.jit
def _one_row_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    permutation_ptr,
    bias_ptr,
    partial_ptr,
    num_done_ptr,
    out_ptr,
    in_features,
    out_features,
    num_tiles,
    tiles_per_split,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SLICES_PER_SCALE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    is_column = columns < out_features
    first = split * tiles_per_split
    # The weight is nobody's result: its first tile is on its way before the kernel in front has ended.
    words = _load_words(words_ptr, first, columns, is_column, out_features, ROWS)
    wait_for_predecessor(IS_DEPENDENT)
    total = _times_x(
        words, x_ptr, scales_ptr, zeros_ptr, permutation_ptr, first, columns, is_column, in_features, out_features,
        BITS, GROUP_SIZE, SLICES_PER_SCALE, HAS_ZEROS, HAS_PERMUTATION, ROWS,
    )  # fmt: skip
    for tile in tl.range(first + 1, tl.minimum(first + tiles_per_split, num_tiles)):
        words = _load_words(words_ptr, tile, columns, is_column, out_features, ROWS)
        total += _times_x(
            words, x_ptr, scales_ptr, zeros_ptr, permutation_ptr, tile, columns, is_column, in_features, out_features,
            BITS, GROUP_SIZE, SLICES_PER_SCALE, HAS_ZEROS, HAS_PERMUTATION, ROWS,
        )  # fmt: skip
    let_successor_start(IS_DEPENDENT)
    out = tl.sum(total, 0)
    is_last = num_splits == 1
    if num_splits > 1:
        tl.store(partial_ptr + split.to(tl.int64) * out_features + columns, out, mask=is_column)
        # Who comes last adds up all parts, in their order; after the barrier all threads' sums are written.
        tl.debug_barrier()
        num_done_ptr += tl.program_id(0)
        is_last = tl.atomic_add(num_done_ptr, 1, sem="acq_rel") == num_splits - 1
        if is_last:
            tl.store(num_done_ptr, 0)
            out = tl.zeros([BLOCK_COLUMNS], tl.float32)
            places = partial_ptr + columns
            for _ in tl.range(0, num_splits):
                out += tl.load(places, mask=is_column, other=0.0, cache_modifier=".cg")
                places += out_features
    if is_last:
        if HAS_BIAS:
            out += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
        tl.store(out_ptr + columns, out.to(out_ptr.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=["num_rows"])  # a batch size seen for the first time must not wait for a compiler
def _tile_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    permutation_ptr,
    partial_ptr,
    num_rows,
    in_features,
    out_features,
    num_tiles,
    tiles_per_split,
    x_stride,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SLICES_PER_SCALE: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    wait_for_predecessor(IS_DEPENDENT)
    PER_WORD: tl.constexpr = 32 // BITS
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    split = tl.program_id(1)
    tokens = tl.program_id(2) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    rows = tl.arange(0, ROWS)
    is_column = columns < out_features
    is_token = tokens < num_rows
    x_rows = x_ptr + tokens.to(tl.int64)[None, :] * x_stride
    # Outputs by tokens: a weight unpacked in registers is the first operand there, and need not go through shared
    # memory as the second must.
    total = tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], tl.float32)
    first = split * tiles_per_split
    for tile in tl.range(first, tl.minimum(first + tiles_per_split, num_tiles)):
        word_rows = (tile * ROWS + rows).to(tl.int64)
        places = words_ptr + word_rows[None, :] * out_features + columns[:, None]
        words = tl.load(places, mask=is_column[:, None], other=0)
        for slice_of_scale in tl.static_range(PER_WORD // SLICES_PER_SCALE):
            first_input = (tile * PER_WORD + slice_of_scale * SLICES_PER_SCALE) * ROWS
            group = tl.minimum(first_input, in_features - 1) // GROUP_SIZE
            scales = tl.load(scales_ptr + group.to(tl.int64) * out_features + columns, mask=is_column, other=0.0)
            zeros = load_zeros(zeros_ptr, group, out_features, columns, is_column, HAS_ZEROS, BITS)[:, None]
            part = tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], tl.float32)
            for index in tl.static_range(SLICES_PER_SCALE):
                inputs = first_input + index * ROWS + rows
                is_input = inputs < in_features
                sources = inputs
                if HAS_PERMUTATION:
                    sources = tl.load(permutation_ptr + inputs, mask=is_input, other=0)
                x = tl.load(x_rows + sources[:, None], mask=is_token[None, :] & is_input[:, None], other=0.0)
                values = signed_values(words, zeros, slice_of_scale * SLICES_PER_SCALE + index, BITS)
                values = values.to(x_ptr.dtype.element_ty)
                part = tl.dot(values, x, part, input_precision=PRECISION)
            total += part * scales.to(tl.float32)[:, None]
    let_successor_start(IS_DEPENDENT)
    out = partial_ptr + (split.to(tl.int64) * num_rows + tokens)[None, :] * out_features + columns[:, None]
    tl.store(out, total, mask=is_token[None, :] & is_column[:, None])


@triton.jit
def _sum_splits_kernel(
    partial_ptr, bias_ptr, out_ptr, num_values, out_features, NUM_SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < num_values
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        total += tl.load(partial_ptr + split * num_values + places, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + places % out_features, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=mask)


def choose_num_splits(num_programs: int, num_tiles: int) -> int:
    """How many parts the inputs are cut into, given the programs there are without."""
    return max(1, min(_MAX_SPLITS, num_tiles // 2, -(-_TARGET_PROGRAMS // num_programs)))


def gptq_matmul(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiplies with a quantised weight.

    Args:
        x: [T, K], contiguous rows.
        weight: [N, K].
        bias: [N] or None.

    Returns:
        [T, N], dtype of x.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    if x.shape[0] > MAX_ROWS_OF_TILES:
        return _many_rows(x, weight, bias)
    if x.shape[0] == 1:
        return _one_row(x, weight, bias)
    return _few_rows(x, weight, bias)


def _constants(weight: PackedWeight) -> dict[str, Any]:
    return {
        "BITS": weight.bits,
        "GROUP_SIZE": weight.group_size,
        "SLICES_PER_SCALE": weight.slices_per_scale,
        "HAS_ZEROS": weight.zeros is not None,
        "HAS_PERMUTATION": weight.permutation is not None,
        "ROWS": ROWS,
    }


def _split(num_programs: int, num_tiles: int) -> tuple[int, int]:
    """Into how many parts the inputs are cut, and tiles of each."""
    tiles_per_split = triton.cdiv(num_tiles, choose_num_splits(num_programs, num_tiles))
    return triton.cdiv(num_tiles, tiles_per_split), tiles_per_split


def _one_row(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    out_features, num_tiles = weight.out_features, weight.num_tiles
    num_column_blocks = triton.cdiv(out_features, _ONE_ROW_COLUMNS)
    num_splits, tiles_per_split = _split(num_column_blocks, num_tiles)
    out = torch.empty((1, out_features), dtype=x.dtype, device=x.device)
    partial = torch.empty((num_splits, out_features), dtype=torch.float32, device=x.device)
    launch(
        _one_row_kernel,
        (num_column_blocks, num_splits),
        x,
        weight.words,
        weight.scales,
        weight.zeros,
        weight.permutation,
        bias,
        partial,
        zeros_for_counting(x.device, num_column_blocks),
        out,
        weight.in_features,
        out_features,
        num_tiles,
        tiles_per_split,
        HAS_BIAS=bias is not None,
        BLOCK_COLUMNS=_ONE_ROW_COLUMNS,
        **_constants(weight),
        num_warps=4,
    )
    return out


def _few_rows(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    num_rows = x.shape[0]
    out_features, num_tiles = weight.out_features, weight.num_tiles
    block_tokens = max(16, min(64, next_power_of_2(num_rows)))
    # The wider tile is faster where its registers suffice, which small groups and a permutation use up.
    is_wide = block_tokens > 16 and weight.group_size >= 128 and weight.permutation is None
    block_columns = 128 if is_wide else 64
    num_column_blocks = triton.cdiv(out_features, block_columns)
    num_token_blocks = triton.cdiv(num_rows, block_tokens)
    num_splits, tiles_per_split = _split(num_column_blocks * num_token_blocks, num_tiles)
    partial = torch.empty((num_splits, num_rows, out_features), dtype=torch.float32, device=x.device)
    launch(
        _tile_kernel,
        (num_column_blocks, num_splits, num_token_blocks),
        x,
        weight.words,
        weight.scales,
        weight.zeros,
        weight.permutation,
        partial,
        num_rows,
        weight.in_features,
        out_features,
        num_tiles,
        tiles_per_split,
        x.stride(0),
        BLOCK_TOKENS=block_tokens,
        BLOCK_COLUMNS=block_columns,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        **_constants(weight),
        num_warps=4,
        num_stages=3,
    )
    out = torch.empty((num_rows, out_features), dtype=x.dtype, device=x.device)
    launch(
        _sum_splits_kernel,
        (triton.cdiv(out.numel(), 512),),
        partial,
        bias,
        out,
        out.numel(),
        out_features,
        NUM_SPLITS=num_splits,
        HAS_BIAS=bias is not None,
        BLOCK=512,
        num_warps=2,
    )
    return out


def _many_rows(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    if weight.permutation is not None:
        x = x.index_select(1, weight.permutation)
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
    num_columns = max(128, _SLICE_BYTES // (weight.in_features * x.element_size()) // 128 * 128)
    for low in range(0, weight.out_features, num_columns):
        part = dequantize(weight, x.dtype, low, min(num_columns, weight.out_features - low))
        columns = slice(low, low + part.shape[1])
        if bias is None:
            torch.mm(x, part, out=out[:, columns])
        else:
            torch.addmm(bias[columns], x, part, out=out[:, columns])
    return out
