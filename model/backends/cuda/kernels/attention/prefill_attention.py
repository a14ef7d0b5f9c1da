"""Causal attention of prefill chunks over the paged cache.

The chunk's own keys are in the cache by then, so cached prefix and chunk are one sequence of blocks. Chunks of any
number and length are cut into tiles of query rows; a tile is one record, so a launch has no empty programs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.attention.cache_arguments import cache_arguments
from model.backends.cuda.kernels.attention.int8 import float_from_int8
from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2

_LOG2_E = tl.constexpr(1.4426950408889634)
# Below any score: 2 to the power of -inf less this is 0, where -inf less -inf would be NaN.
_LEAST = tl.constexpr(-1e30)

# Rows of a tile: in half precision, and in float32, where larger ones spill. Each size is a kernel to compile.
BLOCK_ROWS = {True: (16, 64, 128), False: (16,)}


class PrefillTiles(NamedTuple):
    """Query tiles of a step's chunks.

    Attributes:
        records: [number of tiles, 4] int32: first row in the step, its position, number of rows, where its blocks
            begin in `table`.
        table: [any] int32, block numbers.
        block_rows: most rows of a tile.
    """

    records: torch.Tensor
    table: torch.Tensor
    block_rows: int


@triton.jit
def _blocks_at(table, first_key, last_key, BLOCKS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Loads the numbers of the blocks of a tile of keys, [BLOCKS]."""
    places = first_key // BLOCK_SIZE + tl.arange(0, BLOCKS)
    return tl.load(table + places, mask=places * BLOCK_SIZE < last_key, other=0)


@triton.jit
def _attend_keys(
    out, highest, total, query, first_key, last_key, row_positions, first_seen, window, keys_ptr, values_ptr,
    key_scales_ptr, value_scales_ptr, table,
    IS_CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    IS_INT8: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the keys from `first_key` to `last_key` to a running softmax; with a window none before `first_seen`."""
    dims = tl.arange(0, BLOCK_DIM)
    dim_mask = dims < HEAD_DIM
    BLOCKS: tl.constexpr = BLOCK_KEYS // BLOCK_SIZE if BLOCK_KEYS % BLOCK_SIZE == 0 else 0
    IS_MASKED: tl.constexpr = IS_CAUSAL or HEAD_DIM != BLOCK_DIM
    if BLOCKS > 0:
        blocks = _blocks_at(table, first_key, last_key, BLOCKS, BLOCK_SIZE)
    for start in tl.range(first_key, last_key, BLOCK_KEYS):
        positions = start + tl.arange(0, BLOCK_KEYS)
        is_key = positions < last_key
        if HAS_WINDOW:
            is_key = is_key & (positions >= first_seen)
        if BLOCKS > 0:
            first_slots = blocks.to(tl.int64)[:, None] * BLOCK_SIZE
            slots = tl.reshape(first_slots + tl.arange(0, BLOCK_SIZE)[None, :], [BLOCK_KEYS])
            # Those of the next tile are on their way while this one is multiplied.
            blocks = _blocks_at(table, start + BLOCK_KEYS, last_key, BLOCKS, BLOCK_SIZE)
        else:
            numbers = tl.load(table + positions // BLOCK_SIZE, mask=is_key, other=0)
            slots = numbers.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
        places = slots[:, None] * HEAD_DIM + dims[None, :]
        mask = is_key[:, None] & dim_mask[None, :]
        if IS_MASKED:
            keys = tl.load(keys_ptr + places, mask=mask, other=0.0)
        else:
            keys = tl.load(keys_ptr + places)
        if IS_INT8:
            keys = float_from_int8(keys)
        scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision=PRECISION)
        if IS_INT8:
            scores *= tl.load(key_scales_ptr + slots, mask=is_key, other=0.0)[None, :]
        if IS_CAUSAL:
            is_seen = is_key[None, :] & (positions[None, :] <= row_positions[:, None])
            if HAS_WINDOW:
                is_seen = is_seen & (positions[None, :] > row_positions[:, None] - window)
            scores = tl.where(is_seen, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1) * _LOG2_E)
        if HAS_WINDOW:
            # A row whose window begins behind these keys has seen none yet.
            new_highest = tl.maximum(new_highest, _LEAST)
        rescale = tl.exp2(highest - new_highest)
        probs = tl.exp2(scores * _LOG2_E - new_highest[:, None])
        total = total * rescale + tl.sum(probs, 1)
        if IS_INT8:
            probs *= tl.load(value_scales_ptr + slots, mask=is_key, other=0.0)[None, :]
        if IS_MASKED:
            values = tl.load(values_ptr + places, mask=mask, other=0.0)
        else:
            values = tl.load(values_ptr + places)
        if IS_INT8:
            values = float_from_int8(values)
        out = out * rescale[:, None]
        out = tl.dot(probs.to(query.dtype), values.to(query.dtype), out, input_precision=PRECISION)
        highest = new_highest
    return out, highest, total


@triton.jit(do_not_specialize=["window"])
def _prefill_kernel(
    query_ptr, keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, records_ptr, table_ptr, out_ptr,
    query_stride, out_stride, head_stride, scale_head_stride, window,
    HAS_WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, IS_INT8: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr, PRECISION: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    record = records_ptr + tl.program_id(0) * 4
    head = tl.program_id(1)
    first_row = tl.load(record)
    first_position = tl.load(record + 1)
    num_rows = tl.load(record + 2)
    table = table_ptr + tl.load(record + 3).to(tl.int64)

    rows = tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, BLOCK_DIM)
    mask = (rows < num_rows)[:, None] & (dims < HEAD_DIM)[None, :]
    row_places = (first_row + rows).to(tl.int64)[:, None]
    own = head * HEAD_DIM + dims[None, :]
    query = tl.load(query_ptr + row_places * query_stride + own, mask=mask, other=0.0)
    head_offset = head.to(tl.int64) * head_stride
    keys_ptr += head_offset
    values_ptr += head_offset
    if IS_INT8:
        key_scales_ptr += head.to(tl.int64) * scale_head_stride
        value_scales_ptr += head.to(tl.int64) * scale_head_stride

    # Rows beyond the chunk see what its last row sees, so that none of them sums over nothing.
    row_positions = first_position + tl.minimum(rows, num_rows - 1)
    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    out = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    # Every row sees all keys up to the tile's first position: whole tiles of those need no mask.
    num_seen_by_all = (first_position + 1) // BLOCK_KEYS * BLOCK_KEYS
    first_key = 0
    first_seen = 0
    if HAS_WINDOW:
        # Tiles of keys are counted from position 0, so that a row's sum is the same in any chunk. Those among which
        # the window of some row begins come first.
        first_seen = tl.maximum(first_position + 1 - window, 0)
        first_whole = tl.cdiv(tl.maximum(first_position + num_rows - window, 0), BLOCK_KEYS) * BLOCK_KEYS
        first_key = tl.minimum(first_whole, num_seen_by_all)
        out, highest, total = _attend_keys(
            out, highest, total, query, first_seen // BLOCK_KEYS * BLOCK_KEYS, first_key, row_positions, first_seen,
            window, keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, table, True, HAS_WINDOW, HEAD_DIM,
            BLOCK_SIZE, IS_INT8, BLOCK_KEYS, BLOCK_DIM, PRECISION,
        )  # fmt: skip
    out, highest, total = _attend_keys(
        out, highest, total, query, first_key, num_seen_by_all, row_positions, first_seen, window, keys_ptr,
        values_ptr, key_scales_ptr, value_scales_ptr, table, False, HAS_WINDOW, HEAD_DIM, BLOCK_SIZE, IS_INT8,
        BLOCK_KEYS, BLOCK_DIM, PRECISION,
    )  # fmt: skip
    first_key = num_seen_by_all
    if HAS_WINDOW:  # the window of no row may reach back so far
        first_key = tl.maximum(first_key, first_seen // BLOCK_KEYS * BLOCK_KEYS)
    out, highest, total = _attend_keys(
        out, highest, total, query, first_key, first_position + num_rows, row_positions, first_seen, window, keys_ptr,
        values_ptr, key_scales_ptr, value_scales_ptr, table, True, HAS_WINDOW, HEAD_DIM, BLOCK_SIZE, IS_INT8,
        BLOCK_KEYS, BLOCK_DIM, PRECISION,
    )  # fmt: skip
    let_successor_start(IS_DEPENDENT)
    out = out / total[:, None]
    tl.store(out_ptr + row_places * out_stride + own, out.to(out_ptr.dtype.element_ty), mask=mask)


def tile_records(chunks: Iterable[tuple[int, int, int, int]], block_rows: int) -> list[list[int]]:
    """Cuts chunks into tiles.

    Args:
        chunks: first row, first position, number of rows and where the blocks begin, for each.
        block_rows: most rows of a tile.

    Returns:
        a record of four numbers for each tile; those with the longest contexts first, so that none of them is the last
        to start.
    """
    records = [
        [first_row + low, position + low, min(block_rows, num_rows - low), table_start]
        for first_row, position, num_rows, table_start in chunks
        for low in range(0, num_rows, block_rows)
    ]
    records.sort(key=lambda record: record[1], reverse=True)
    return records


def choose_block_rows(dtype: torch.dtype, longest_chunk: int, *, batch_invariant: bool = False) -> int:
    """Chooses the rows of a query tile: 128 keeps the tensor cores fed, fewer waste less on short chunks.

    Args:
        dtype: dtype of the queries.
        longest_chunk: rows of the step's longest chunk.
        batch_invariant: whether the number must not depend on the step.
    """
    sizes = BLOCK_ROWS[dtype != torch.float32]
    return next((size for size in sizes if size >= longest_chunk and not batch_invariant), sizes[-1])


def prefill_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    tiles: PrefillTiles,
    out: torch.Tensor,
    *,
    block_size: int,
    window: int = 0,
) -> None:
    """Attends with the rows of chunks.

    Args:
        query: [T, num_heads, head_dim], rotated and scaled.
        cache: [2, num_heads, num_slots, head_dim], one layer's keys and values, the chunks' own included.
        scales: [2, num_heads, num_slots] float32 beside an int8 cache, else None.
        tiles: the chunks, cut into tiles.
        out: [T, num_heads, head_dim], contiguous in the last two dimensions; the chunks' rows are written.
        block_size: tokens in a block.
        window: how many of the last positions a row reads; 0 for all.
    """
    _, num_heads, _, head_dim = cache.shape
    is_float32 = query.dtype == torch.float32
    is_wide = is_float32 or scales is not None
    cache_pointers, cache_strides = cache_arguments(cache, scales)
    launch(
        _prefill_kernel,
        (len(tiles.records), num_heads),
        query, *cache_pointers, tiles.records, tiles.table, out,
        query.stride(0), out.stride(0), *cache_strides, window,
        HAS_WINDOW=window > 0, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, IS_INT8=scales is not None,
        BLOCK_ROWS=tiles.block_rows,
        # Wider tiles of float32, or of keys to convert, do not fit into the registers.
        BLOCK_KEYS=32 if is_wide else 64,
        # tl.dot takes no side below 16.
        BLOCK_DIM=max(16, next_power_of_2(head_dim)),
        # Never TF32: float32 is asked for by those who want the published numbers.
        PRECISION="ieee" if is_float32 else "tf32",
        num_warps=8 if is_float32 or (tiles.block_rows == 128 and not is_wide) else 4,
        num_stages=2 if is_wide else 3,
    )  # fmt: skip
