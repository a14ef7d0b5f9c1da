"""The kernel of products with quantised weights: tiles of words times tiles of rows, on tensor cores.

It knows tiles of words (see `gptq_layout`) and numbers of programs; `gptq_matmul` chooses the tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.matmul.gptq_dequantize import load_zeros, pair_of_values


@triton.jit
def _slice_of(words, zeros, codes_ptr, PLACE: tl.constexpr, BITS: tl.constexpr, HAS_CODES: tl.constexpr,
              UNPACKING: tl.constexpr):  # fmt: skip
    """Returns the values of one slice, [..., word, half]."""
    low, high = pair_of_values(words, zeros, codes_ptr, PLACE, BITS, HAS_CODES, UNPACKING)
    return tl.join(low, high)


@triton.jit
def _slices_of(words, zeros, codes_ptr, PLACE: tl.constexpr, NUM_SLICES: tl.constexpr, BITS: tl.constexpr,
               HAS_CODES: tl.constexpr, UNPACKING: tl.constexpr):  # fmt: skip
    """Returns one, two or four slices from PLACE on as an operand, [outputs, inputs], or with an axis in front."""
    first = _slice_of(words, zeros, codes_ptr, PLACE, BITS, HAS_CODES, UNPACKING)
    if NUM_SLICES == 1:
        values = first
    else:
        second = _slice_of(words, zeros, codes_ptr, PLACE + 1, BITS, HAS_CODES, UNPACKING)
        if NUM_SLICES == 2:
            values = tl.join(first, second)  # [..., word, half, slice]
        else:
            third = _slice_of(words, zeros, codes_ptr, PLACE + 2, BITS, HAS_CODES, UNPACKING)
            fourth = _slice_of(words, zeros, codes_ptr, PLACE + 3, BITS, HAS_CODES, UNPACKING)
            values = tl.join(tl.join(first, third), tl.join(second, fourth))  # [..., word, half, slice / 2, slice % 2]
    # Only names of registers change here: the slices are laid side by side.
    if len(words.shape) == 2:
        if NUM_SLICES == 2:
            values = values.permute(0, 3, 1, 2)
        elif NUM_SLICES == 4:
            values = values.permute(0, 3, 4, 1, 2)
        values = values.reshape(words.shape[0], NUM_SLICES * 2 * words.shape[1])
    else:
        if NUM_SLICES == 2:
            values = values.permute(0, 1, 4, 2, 3)
        elif NUM_SLICES == 4:
            values = values.permute(0, 1, 4, 5, 2, 3)
        values = values.reshape(words.shape[0], words.shape[1], NUM_SLICES * 2 * words.shape[2])
    return values


@triton.jit
def _load_scales(scales_ptr, first_input, in_features, out_features, columns, is_column, GROUP_SIZE: tl.constexpr):
    group = tl.minimum(first_input, in_features - 1) // GROUP_SIZE
    return tl.load(scales_ptr + group * out_features + columns, mask=is_column, other=0.0)


# A batch size seen for the first time must not wait for a compiler.
@triton.jit(do_not_specialize=["num_rows", "steps_per_split"])
def tile_kernel(
    x_ptr, words_ptr, scales_ptr, zeros_ptr, offsets_ptr, codes_ptr, permutation_ptr, bias_ptr, partial_ptr,
    num_done_ptr, out_ptr,
    num_rows, in_features, out_features, num_tiles, steps_per_split, x_stride,
    BITS: tl.constexpr, GROUP_SIZE: tl.constexpr, SLICES_PER_SCALE: tl.constexpr, SLICES_PER_DOT: tl.constexpr,
    HAS_ZEROS: tl.constexpr, HAS_OFFSETS: tl.constexpr, HAS_CODES: tl.constexpr, HAS_PERMUTATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, UNPACKING: tl.constexpr, ROWS: tl.constexpr, WARP_TILES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PRECISION: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Multiplies outputs by tokens, scaled once a group; of the programs that share outputs the last adds up all sums.

    The weight is the first operand, so that what is unpacked in registers need not go through shared memory. With
    WARP_TILES, one for each warp, a step is so many tiles and each warp works alone on one of them, to the end: this
    serves few rows. With 0 all warps share a tile.
    """
    SLICE: tl.constexpr = 2 * ROWS  # inputs: of each word the two values at a place and half a word further on
    NUM_SLICES: tl.constexpr = 16 // BITS
    IS_ONE_SCALE: tl.constexpr = SLICES_PER_SCALE == NUM_SLICES
    DOT_INPUTS: tl.constexpr = SLICES_PER_DOT * SLICE
    TILES_PER_STEP: tl.constexpr = 1 if WARP_TILES == 0 else WARP_TILES
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    split = tl.program_id(1)
    tokens = tl.program_id(2) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    dot_inputs = tl.arange(0, DOT_INPUTS)
    is_column = columns < out_features
    is_token = tokens < num_rows
    word_places = words_ptr + columns.to(tl.int64)[:, None] * (num_tiles * ROWS) + tl.arange(0, ROWS)[None, :]
    x_rows = x_ptr + tokens.to(tl.int64) * x_stride
    # Where each warp has a tile of its own, the tiles of a step stand in an axis in front.
    if WARP_TILES == 0:
        warp = 0
        num_steps = num_tiles
        total = tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], tl.float32)
    else:
        warp = tl.arange(0, WARP_TILES)[:, None]
        num_steps = tl.cdiv(num_tiles, WARP_TILES)
        total = tl.zeros([WARP_TILES, BLOCK_COLUMNS, BLOCK_TOKENS], tl.float32)
    first = split * steps_per_split
    wait_for_predecessor(IS_DEPENDENT)
    if IS_ONE_SCALE:
        first_input = (first * TILES_PER_STEP + warp) * (NUM_SLICES * SLICE)
        scales = _load_scales(scales_ptr, first_input, in_features, out_features, columns, is_column, GROUP_SIZE)
    for step in tl.range(first, tl.minimum(first + steps_per_split, num_steps)):
        tile = step * TILES_PER_STEP + warp
        if WARP_TILES == 0:
            words = tl.load(word_places + tile * ROWS, mask=is_column[:, None], other=0)
        else:
            is_word = is_column[None, :, None] & (tile < num_tiles)[:, :, None]
            words = tl.load(word_places[None, :, :] + (tile * ROWS)[:, :, None], mask=is_word, other=0)
        if IS_ONE_SCALE:  # one step ahead: these are no part of the pipeline, as their rows are too short for it
            next_input = (tile + TILES_PER_STEP) * (NUM_SLICES * SLICE)
            next_scales = _load_scales(
                scales_ptr, next_input, in_features, out_features, columns, is_column, GROUP_SIZE
            )
        for place in tl.static_range(0, NUM_SLICES, SLICES_PER_SCALE):
            first_input = (tile * NUM_SLICES + place) * SLICE
            group = tl.minimum(first_input, in_features - 1) // GROUP_SIZE
            if not IS_ONE_SCALE:
                scales = _load_scales(
                    scales_ptr, first_input, in_features, out_features, columns, is_column, GROUP_SIZE
                )
            zeros = load_zeros(zeros_ptr, group, out_features, columns, is_column, HAS_ZEROS, BITS)
            part = tl.zeros(total.shape, tl.float32)
            for further in tl.static_range(0, SLICES_PER_SCALE, SLICES_PER_DOT):
                inputs = first_input + further * SLICE + dot_inputs
                is_input = inputs < in_features
                sources = inputs
                if HAS_PERMUTATION:
                    sources = tl.load(permutation_ptr + inputs, mask=is_input, other=0)
                is_x = tl.expand_dims(is_input, -1) & is_token
                x = tl.load(x_rows + tl.expand_dims(sources, -1), mask=is_x, other=0.0)
                values = _slices_of(
                    words, tl.expand_dims(zeros, -1), codes_ptr, place + further, SLICES_PER_DOT, BITS, HAS_CODES,
                    UNPACKING,
                )  # fmt: skip
                part = tl.dot(values.to(x.dtype), x, part, input_precision=PRECISION)
                if HAS_OFFSETS:
                    if further == 0:
                        x_sums = tl.sum(x.to(tl.float32), -2)
                    else:
                        x_sums += tl.sum(x.to(tl.float32), -2)
            total += part * tl.expand_dims(scales.to(tl.float32), -1)
            if HAS_OFFSETS:
                offsets = tl.load(offsets_ptr + group * out_features + columns, mask=is_column, other=0.0)
                total += tl.expand_dims(offsets, -1) * tl.expand_dims(x_sums, -2)
        if IS_ONE_SCALE:
            scales = next_scales
    let_successor_start(IS_DEPENDENT)
    out = total if WARP_TILES == 0 else tl.sum(total, 0)
    places = tokens.to(tl.int64)[None, :] * out_features + columns[:, None]
    mask = is_token[None, :] & is_column[:, None]
    num_splits = tl.num_programs(1)
    is_last = num_splits == 1
    if num_splits > 1:
        size = num_rows * out_features
        tl.store(partial_ptr + split.to(tl.int64) * size + places, out, mask=mask)
        # The last program adds up all parts, in their order; after the barrier all threads' sums are written.
        tl.debug_barrier()
        num_done_ptr += tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        is_last = tl.atomic_add(num_done_ptr, 1, sem="acq_rel") == num_splits - 1
        if is_last:
            tl.store(num_done_ptr, 0)
            out = tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], tl.float32)
            parts = partial_ptr + places
            for _ in tl.range(0, num_splits):
                out += tl.load(parts, mask=mask, other=0.0, cache_modifier=".cg")
                parts += size
    if is_last:
        if HAS_BIAS:
            out += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[:, None]
        tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=mask)
