"""Attention of one query row a sequence over its paged keys: split over the keys, then merged.

Reading the cache takes nearly all the time. The keys of a sequence are cut into as many parts as it takes to give every
multiprocessor work even at batch 1; the number of parts is fixed at launch (a CUDA graph cannot change it), and their
length follows the context, which the device reads. The arithmetic is plain float32 on vectors: one row against a
tile would leave fifteen sixteenths of a tensor core's product unused, and the tile would have to pass through shared
memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.attention.cache_arguments import cache_arguments
from model.backends.cuda.kernels.attention.int8 import float_from_int8
from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2, zeros_for_counting

# Enough programs for about four on each of an H200's 132 multiprocessors.
_TARGET_PROGRAMS = 528
_MAX_SPLITS = 64
# The number of parts where it must not depend on the step.
_FIXED_SPLITS = 8
# Parts of one tile: at short contexts they run beside one another instead of one after the other.
_MIN_SPLIT_TOKENS = 32
# Elements of a tile of keys: 128 a thread of one warp, of which none spills.
_TILE_ELEMENTS = 4096

_LOG2_E = tl.constexpr(1.4426950408889634)


class DecodeRows(NamedTuple):
    """The rows of a step that are decodes, and the places of their keys.

    Attributes:
        rows: [B] int32, the row of the step's queries, and of its output; -1 for none.
        lengths: [B] int32, keys of each sequence, the new one included; 0 gives zeros.
        table_starts: [B] int32, where in `table` the sequence's blocks begin.
        table: [any] int32, block numbers.
    """

    rows: torch.Tensor
    lengths: torch.Tensor
    table_starts: torch.Tensor
    table: torch.Tensor


@triton.jit
def _merge(
    partial_ptr, log_sum_ptr,
    first, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SPLITS: tl.constexpr, SPLITS_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Adds up the output of one head from its parts, [BLOCK_DIM] float32."""
    dims = tl.arange(0, BLOCK_DIM)
    all_splits = tl.arange(0, BLOCK_SPLITS)
    # Bypasses the first-level cache, which may hold what another step left there.
    all_log_sums = tl.load(
        log_sum_ptr + first + all_splits, mask=all_splits < num_splits, other=float("-inf"), cache_modifier=".cg"
    )
    highest = tl.max(all_log_sums, 0)
    # Unused parts have -inf, and a sequence without keys nothing but those.
    highest = tl.where(highest > float("-inf"), highest, 0.0)
    total = tl.sum(tl.exp2(all_log_sums - highest), 0)
    out = tl.zeros([BLOCK_DIM], tl.float32)
    for start in tl.range(0, num_splits, SPLITS_AT_ONCE):
        splits = start + tl.arange(0, SPLITS_AT_ONCE)
        log_sums = tl.load(
            log_sum_ptr + first + splits, mask=splits < num_splits, other=float("-inf"), cache_modifier=".cg"
        )
        # Parts that had no keys were not written, so their memory may hold anything and is not read.
        mask = (log_sums > float("-inf"))[:, None] & (dims < HEAD_DIM)[None, :]
        places = partial_ptr + (first + splits)[:, None] * HEAD_DIM + dims[None, :]
        parts = tl.load(places, mask=mask, other=0.0, cache_modifier=".cg")
        out += tl.sum(parts * tl.exp2(log_sums - highest)[:, None], 0)
    return out / tl.where(total > 0, total, 1.0)


@triton.jit(do_not_specialize=["num_splits", "window"])
def _decode_attention_kernel(
    query_ptr, keys_ptr, values_ptr, key_scales_ptr, value_scales_ptr, rows_ptr, lengths_ptr, table_starts_ptr,
    table_ptr, out_ptr, partial_ptr, log_sum_ptr, num_done_ptr,
    query_stride, out_stride, head_stride, scale_head_stride, num_splits, window,
    HAS_WINDOW: tl.constexpr, IS_SPLIT: tl.constexpr, MIN_SPLIT_TOKENS: tl.constexpr, NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, IS_INT8: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    row = tl.load(rows_ptr + sequence).to(tl.int64)
    if row < 0:
        return
    length = tl.load(lengths_ptr + sequence)
    num_keys = length
    if HAS_WINDOW:
        num_keys = tl.minimum(length, window)
    # A multiple of the tile, so that no part but the last has a ragged end.
    part = tl.cdiv(tl.cdiv(num_keys, num_splits), BLOCK_TOKENS) * BLOCK_TOKENS
    part = tl.maximum(part, MIN_SPLIT_TOKENS)
    first = split * part
    if HAS_WINDOW:
        first += length - num_keys
    last = tl.minimum(first + part, length)

    dims = tl.arange(0, BLOCK_DIM)
    dim_mask = dims < HEAD_DIM
    query = tl.load(query_ptr + row * query_stride + head * HEAD_DIM + dims, mask=dim_mask, other=0.0)
    query = query.to(tl.float32) * _LOG2_E
    table = table_ptr + tl.load(table_starts_ptr + sequence).to(tl.int64)
    head_offset = head.to(tl.int64) * head_stride
    scale_offset = head.to(tl.int64) * scale_head_stride

    highest = float("-inf")
    total = 0.0
    out = tl.zeros([BLOCK_DIM], tl.float32)
    for start in tl.range(first, last, BLOCK_TOKENS):
        positions = start + tl.arange(0, BLOCK_TOKENS)
        is_key = positions < last
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=is_key, other=0)
        slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
        places = head_offset + slots[:, None] * HEAD_DIM + dims[None, :]
        mask = is_key[:, None] & dim_mask[None, :]
        keys = tl.load(keys_ptr + places, mask=mask, other=0.0)
        values = tl.load(values_ptr + places, mask=mask, other=0.0)
        if IS_INT8:
            keys = float_from_int8(keys)
            values = float_from_int8(values)
        scores = tl.sum(keys.to(tl.float32) * query[None, :], 1)
        if IS_INT8:
            scores *= tl.load(key_scales_ptr + scale_offset + slots, mask=is_key, other=0.0)
        scores = tl.where(is_key, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 0))
        rescale = tl.exp2(highest - new_highest)
        probs = tl.exp2(scores - new_highest)
        total = total * rescale + tl.sum(probs, 0)
        if IS_INT8:
            probs *= tl.load(value_scales_ptr + scale_offset + slots, mask=is_key, other=0.0)
        out = out * rescale + tl.sum(probs[:, None] * values.to(tl.float32), 0)
        highest = new_highest

    let_successor_start(IS_DEPENDENT)
    is_empty = first >= last
    total = tl.where(is_empty, 1.0, total)
    out = out / total
    if not IS_SPLIT:
        places = out_ptr + row * out_stride + head * HEAD_DIM + dims
        tl.store(places, out.to(out_ptr.dtype.element_ty), mask=dim_mask)
    else:
        pair = sequence * NUM_HEADS + head
        index = pair.to(tl.int64) * num_splits + split
        tl.store(partial_ptr + index * HEAD_DIM + dims, out, mask=dim_mask & (first < last))
        log_sum = tl.where(is_empty, float("-inf"), highest + tl.log2(total))
        tl.store(log_sum_ptr + index, log_sum)
        # The last program merges all parts, in their order; after the barrier all threads' results are written.
        tl.debug_barrier()
        if tl.atomic_add(num_done_ptr + pair, 1, sem="acq_rel") == num_splits - 1:
            tl.store(num_done_ptr + pair, 0)
            merged = _merge(partial_ptr, log_sum_ptr, index - split, num_splits, HEAD_DIM, BLOCK_DIM, BLOCK_SPLITS, 16)
            places = out_ptr + row * out_stride + head * HEAD_DIM + dims
            tl.store(places, merged.to(out_ptr.dtype.element_ty), mask=dim_mask)


def choose_num_splits(num_seqs: int, num_heads: int, max_length: int, *, batch_invariant: bool = False) -> int:
    """Chooses how many parts the keys are cut into.

    Args:
        num_seqs: sequences of the launch.
        num_heads: heads of the model.
        max_length: the longest sequence that the launch may see.
        batch_invariant: whether the number must not depend on the step.
    """
    if batch_invariant:
        return _FIXED_SPLITS
    wanted = -(-_TARGET_PROGRAMS // max(1, num_seqs * num_heads))
    # At large batches a few parts remain: one long context among short ones would run on alone otherwise.
    wanted = max(wanted, 4 if num_seqs < 128 else 2)
    return max(1, min(wanted, max_num_splits(max_length)))


def max_num_splits(num_keys: int) -> int:
    """Returns the most parts that so many keys are cut into."""
    return max(1, min(_MAX_SPLITS, -(-num_keys // _MIN_SPLIT_TOKENS)))


def decode_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    decodes: DecodeRows,
    out: torch.Tensor,
    *,
    block_size: int,
    num_splits: int,
    window: int = 0,
) -> None:
    """Attends with one row a sequence.

    Args:
        query: [T, num_heads, head_dim], rotated and scaled.
        cache: [2, num_heads, num_slots, head_dim], one layer's keys and values.
        scales: [2, num_heads, num_slots] float32 beside an int8 cache, else None.
        decodes: B rows.
        out: [T, num_heads, head_dim], contiguous in the last two dimensions; the decodes' rows are written.
        block_size: tokens in a block.
        num_splits: the result of `choose_num_splits`.
        window: how many of the last positions a row reads; 0 for all.
    """
    num_seqs = len(decodes.rows)
    _, num_heads, _, head_dim = cache.shape
    partial = log_sum = num_done = None
    if num_splits > 1:
        shape = (num_seqs, num_heads, num_splits)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
        log_sum = torch.empty(shape, dtype=torch.float32, device=query.device)
        num_done = zeros_for_counting(query.device, num_seqs * num_heads)
    cache_pointers, cache_strides = cache_arguments(cache, scales)
    block_dim = next_power_of_2(head_dim)
    launch(
        _decode_attention_kernel,
        (num_seqs, num_heads, num_splits),
        query, *cache_pointers, *decodes, out, partial, log_sum, num_done,
        query.stride(0), out.stride(0), *cache_strides, num_splits, window,
        HAS_WINDOW=window > 0, IS_SPLIT=num_splits > 1, MIN_SPLIT_TOKENS=_MIN_SPLIT_TOKENS, NUM_HEADS=num_heads,
        HEAD_DIM=head_dim, BLOCK_SIZE=block_size, IS_INT8=scales is not None, BLOCK_DIM=block_dim,
        BLOCK_TOKENS=max(16, min(64, _TILE_ELEMENTS // block_dim)), BLOCK_SPLITS=_MAX_SPLITS,
        # A single warp needs no barrier to add up a score; in float32 its tile would not fit into the registers.
        num_warps=1 if cache.element_size() <= 2 else 4,
    )  # fmt: skip
