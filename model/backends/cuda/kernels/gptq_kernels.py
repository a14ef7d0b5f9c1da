"""The kernels of products with quantised weights: one row, a few rows, and the sum of what the latter leave in parts.

They know tiles of words (see `gptq_layout`) and numbers of programs; which of them serves is `gptq_matmul`'s business.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.gptq_dequantize import levels, load_zeros


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
    offsets_ptr,
    codes_ptr,
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
    HAS_OFFSETS: tl.constexpr,
    HAS_CODES: tl.constexpr,
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
        x_sums = tl.zeros([ROWS], tl.float32)
        for index in tl.static_range(SLICES_PER_SCALE):
            inputs = first_input + index * ROWS + rows
            is_input = inputs < in_features
            sources = inputs
            if HAS_PERMUTATION:
                sources = tl.load(permutation_ptr + inputs, mask=is_input, other=0)
            x = tl.load(x_ptr + sources, mask=is_input, other=0.0).to(tl.float32)
            part += x[:, None] * levels(
                words, zeros, codes_ptr, slice_of_scale * SLICES_PER_SCALE + index, BITS, HAS_CODES
            )
            x_sums += x
        total += part * scales.to(tl.float32)[None, :]
        if HAS_OFFSETS:
            offsets = offsets_ptr + group.to(tl.int64) * out_features + columns
            total += x_sums[:, None] * tl.load(offsets, mask=is_column, other=0.0)[None, :]
    return total


@triton.jit
def one_row_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    offsets_ptr,
    codes_ptr,
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
    HAS_OFFSETS: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Plain float32 on vectors; of the programs that share a block of columns the last adds up all their sums."""
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    is_column = columns < out_features
    first = split * tiles_per_split
    # The weight is nobody's result: its first tile is on its way before the kernel in front has ended.
    words = _load_words(words_ptr, first, columns, is_column, out_features, ROWS)
    wait_for_predecessor(IS_DEPENDENT)
    total = _times_x(
        words, x_ptr, scales_ptr, zeros_ptr, offsets_ptr, codes_ptr, permutation_ptr, first, columns, is_column,
        in_features, out_features, BITS, GROUP_SIZE, SLICES_PER_SCALE, HAS_ZEROS, HAS_OFFSETS, HAS_CODES,
        HAS_PERMUTATION, ROWS,
    )  # fmt: skip
    for tile in tl.range(first + 1, tl.minimum(first + tiles_per_split, num_tiles)):
        words = _load_words(words_ptr, tile, columns, is_column, out_features, ROWS)
        total += _times_x(
            words, x_ptr, scales_ptr, zeros_ptr, offsets_ptr, codes_ptr, permutation_ptr, tile, columns, is_column,
            in_features, out_features, BITS, GROUP_SIZE, SLICES_PER_SCALE, HAS_ZEROS, HAS_OFFSETS, HAS_CODES,
            HAS_PERMUTATION, ROWS,
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
def tile_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    zeros_ptr,
    offsets_ptr,
    codes_ptr,
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
    HAS_OFFSETS: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_PERMUTATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Tiles of the weight times tiles of rows, on tensor cores, scaled once a group; each split leaves its own sum."""
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
            x_sums = tl.zeros([BLOCK_TOKENS], tl.float32)
            for index in tl.static_range(SLICES_PER_SCALE):
                inputs = first_input + index * ROWS + rows
                is_input = inputs < in_features
                sources = inputs
                if HAS_PERMUTATION:
                    sources = tl.load(permutation_ptr + inputs, mask=is_input, other=0)
                x = tl.load(x_rows + sources[:, None], mask=is_token[None, :] & is_input[:, None], other=0.0)
                values = levels(words, zeros, codes_ptr, slice_of_scale * SLICES_PER_SCALE + index, BITS, HAS_CODES)
                values = values.to(x_ptr.dtype.element_ty)
                part = tl.dot(values, x, part, input_precision=PRECISION)
                if HAS_OFFSETS:
                    x_sums += tl.sum(x.to(tl.float32), 0)
            total += part * scales.to(tl.float32)[:, None]
            if HAS_OFFSETS:
                offsets = offsets_ptr + group.to(tl.int64) * out_features + columns
                total += tl.load(offsets, mask=is_column, other=0.0)[:, None] * x_sums[None, :]
    let_successor_start(IS_DEPENDENT)
    out = partial_ptr + (split.to(tl.int64) * num_rows + tokens)[None, :] * out_features + columns[:, None]
    tl.store(out, total, mask=is_token[None, :] & is_column[:, None])


@triton.jit
def sum_splits_kernel(
    partial_ptr, bias_ptr, out_ptr, num_values, out_features, NUM_SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Adds what the splits left, in their order, and the bias."""
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
