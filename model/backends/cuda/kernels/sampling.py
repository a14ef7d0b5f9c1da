"""Greedy choice, temperature, top_k, top_p, min_p and the draw: one program a row, no sort, no host.

What the filters keep of a row is everything above some weight, and some of those that equal it. That weight is looked
for on its bits: floats of one sign are ordered as their bits are, so each pass over the row (which sits in the L2
cache) tries three thresholds and settles two bits, until the bracket holds a single value. At most 15 passes are needed
and usually half of them; sorting moves each of 151,936 logits several times, and a top-k of fixed size is not exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.launch import launch

# 16 numbers a thread of 16 warps; with twice as many, registers spill.
_BLOCK = 8192
_ONE_BITS = tl.constexpr(0x3F800000)


class RowFilters(NamedTuple):
    """How each row is sampled; S rows.

    Attributes:
        temperature: [S] float32; 0 is greedy.
        top_k: [S] int32; 0 is off.
        top_p: [S] float32; 1 is off.
        min_p: [S] float32; 0 is off.
        draws: [S] float32 in [0, 1).
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    draws: torch.Tensor


@triton.jit
def _find_threshold(row_ptr, vocab_size, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest weight such that those at or above it are, or weigh, at least `target`."""
    low = 0
    high = _ONE_BITS + 1
    is_settled = 0
    while (high - low > 1) & (is_settled == 0):
        step = tl.maximum((high - low) // 4, 1)
        bits_1 = low + step
        bits_2 = tl.minimum(low + 2 * step, high)
        bits_3 = tl.minimum(low + 3 * step, high)
        value_0 = low.to(tl.float32, bitcast=True)
        value_1 = bits_1.to(tl.float32, bitcast=True)
        value_2 = bits_2.to(tl.float32, bitcast=True)
        value_3 = bits_3.to(tl.float32, bitcast=True)
        value_4 = high.to(tl.float32, bitcast=True)
        sum_1 = 0.0
        sum_2 = 0.0
        sum_3 = 0.0
        lowest = float("inf")
        highest = 0.0
        for start in tl.range(0, vocab_size, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            weights = tl.load(row_ptr + columns, mask=columns < vocab_size, other=-1.0)
            amount = weights if BY_MASS else tl.full([BLOCK], 1.0, tl.float32)
            sum_1 += tl.sum(tl.where(weights >= value_1, amount, 0.0), 0)
            sum_2 += tl.sum(tl.where(weights >= value_2, amount, 0.0), 0)
            sum_3 += tl.sum(tl.where(weights >= value_3, amount, 0.0), 0)
            is_inside = (weights >= value_0) & (weights < value_4)
            lowest = tl.minimum(lowest, tl.min(tl.where(is_inside, weights, float("inf")), 0))
            highest = tl.maximum(highest, tl.max(tl.where(is_inside, weights, 0.0), 0))
        if lowest >= highest:
            # Only one value is left between the bounds.
            low = highest.to(tl.int32, bitcast=True)
            is_settled = 1
        elif (sum_3 >= target) & (bits_3 < high):
            low = bits_3
        elif (sum_2 >= target) & (bits_2 < high):
            low = bits_2
            high = bits_3
        elif sum_1 >= target:
            low = bits_1
            high = bits_2
        else:
            high = bits_1
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _weigh(logits_ptr, vocab_size, highest, temperature, BLOCK: tl.constexpr):
    """Overwrites logits with exp((logit - highest) / temperature); returns the sum."""
    total = 0.0
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < vocab_size
        logits = tl.load(logits_ptr + columns, mask=mask, other=float("-inf"))
        weights = tl.exp((logits - highest) / temperature)
        tl.store(logits_ptr + columns, weights, mask=mask)
        total += tl.sum(weights, 0)
    return total


@triton.jit
def _draw(row_ptr, vocab_size, target, threshold, num_equal, floor, fallback, BLOCK: tl.constexpr):
    """The first kept column where the running sum of kept weights exceeds `target`; if none, the last kept one.

    Kept is what is above the threshold, and of what equals it the first `num_equal`, all of it not below `floor`.
    """
    before = 0.0
    equals = 0.0
    chosen = vocab_size
    last_kept = fallback
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        weights = tl.load(row_ptr + columns, mask=columns < vocab_size, other=-1.0)
        is_equal = weights == threshold
        rank = equals + tl.cumsum(is_equal.to(tl.float32), 0)
        is_kept = ((weights > threshold) | (is_equal & (rank <= num_equal))) & (weights >= floor) & (weights > 0)
        kept = tl.where(is_kept, weights, 0.0)
        running = before + tl.cumsum(kept, 0)
        hits = tl.where(is_kept & (running > target), columns, vocab_size)
        chosen = tl.minimum(chosen, tl.min(hits, 0))
        last_kept = tl.maximum(last_kept, tl.max(tl.where(is_kept, columns, -1), 0))
        before += tl.sum(kept, 0)
        equals += tl.sum(is_equal.to(tl.float32), 0)
    return tl.where(chosen < vocab_size, chosen, last_kept)


@triton.jit
def _kept_mass(row_ptr, vocab_size, threshold, num_equal, floor, BLOCK: tl.constexpr):
    total = 0.0
    equals = 0.0
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        weights = tl.load(row_ptr + columns, mask=columns < vocab_size, other=-1.0)
        is_kept = (weights > threshold) & (weights >= floor) & (weights > 0)
        total += tl.sum(tl.where(is_kept, weights, 0.0), 0)
        equals += tl.sum((weights == threshold).to(tl.float32), 0)
    equals = tl.where((threshold >= floor) & (threshold > 0), tl.minimum(equals, num_equal), 0.0)
    return total + equals * threshold


@triton.jit
def _strictly_above(row_ptr, vocab_size, threshold, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    total = 0.0
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        weights = tl.load(row_ptr + columns, mask=columns < vocab_size, other=-1.0)
        amount = weights if BY_MASS else tl.full([BLOCK], 1.0, tl.float32)
        total += tl.sum(tl.where(weights > threshold, amount, 0.0), 0)
    return total


@triton.jit
def _sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    draws_ptr,
    ids_ptr,
    is_valid_ptr,
    row_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * row_stride
    highest = float("-inf")
    best = 0
    num_broken = 0
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
        num_broken += tl.sum((logits != logits).to(tl.int32), 0)
        block_highest = tl.max(logits, 0)
        block_best = start + tl.argmax(logits, 0)
        best = tl.where(block_highest > highest, block_best, best)
        highest = tl.maximum(highest, block_highest)
    is_valid = (num_broken == 0) & (highest > float("-inf")) & (highest < float("inf"))
    tl.store(is_valid_ptr + row, is_valid.to(tl.int8))
    temperature = tl.load(temperature_ptr + row)
    if is_valid & (temperature > 0):
        total = _weigh(row_ptr, vocab_size, highest, tl.maximum(temperature, 1e-30), BLOCK)
        # Threads read back what others wrote.
        tl.debug_barrier()
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        floor = tl.load(min_p_ptr + row)
        threshold = 0.0
        num_equal = 4294967296.0
        mass = total
        if (top_k > 0) & (top_k < vocab_size):
            threshold = _find_threshold(row_ptr, vocab_size, top_k.to(tl.float32), False, BLOCK)
            num_equal = top_k.to(tl.float32) - _strictly_above(row_ptr, vocab_size, threshold, False, BLOCK)
            mass = _kept_mass(row_ptr, vocab_size, threshold, num_equal, 0.0, BLOCK)
        if top_p < 1.0:
            target = top_p * mass
            new_threshold = _find_threshold(row_ptr, vocab_size, target, True, BLOCK)
            if new_threshold >= threshold:
                missing = target - _strictly_above(row_ptr, vocab_size, new_threshold, True, BLOCK)
                new_equal = tl.maximum(tl.ceil(missing / tl.maximum(new_threshold, 1e-30)), 1.0)
                num_equal = tl.where(new_threshold > threshold, new_equal, tl.minimum(num_equal, new_equal))
                threshold = new_threshold
        mass = _kept_mass(row_ptr, vocab_size, threshold, num_equal, floor, BLOCK)
        target = tl.load(draws_ptr + row) * mass
        best = _draw(row_ptr, vocab_size, target, threshold, num_equal, floor, best, BLOCK)
    tl.store(ids_ptr + row, best.to(tl.int64))


def sample_rows(logits: torch.Tensor, filters: RowFilters) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks a token for each row.

    Args:
        logits: [S, vocab_size] float32, rows of any stride; overwritten where the temperature is above 0.
        filters: of the S rows.

    Returns:
        ids [S] int64, and [S] bool: whether the row was of numbers (if not, its id means nothing).
    """
    num_rows, vocab_size = logits.shape
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    is_valid = torch.empty(num_rows, dtype=torch.int8, device=logits.device)
    launch(
        _sample_kernel, (num_rows,), logits, *filters, ids, is_valid, logits.stride(0), vocab_size, BLOCK=_BLOCK,
        num_warps=16,
    )  # fmt: skip
    return ids, is_valid.bool()
