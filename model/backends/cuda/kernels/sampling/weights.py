"""Turns logits into weights, before thresholds are looked for, and draws a column from what is kept, after that.

A program looks at one part of one row, and waits for no other of its launch: all programs of the next launch add up
what the parts have found, in the order of the parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.sampling.parts import begin_part, places_of_part


@triton.jit
def survey_kernel(
    logits_ptr, highest_ptr, best_ptr, row_stride, vocab_size, PART: tl.constexpr, IS_DEPENDENT: tl.constexpr
):
    """Finds the largest logit of each part, and its column."""
    part, row, num_parts = begin_part(IS_DEPENDENT)
    columns, places = places_of_part(logits_ptr, row, part, row_stride, PART)
    logits = tl.load(places, mask=columns < vocab_size, other=float("-inf"))
    highest = tl.max(logits, 0)
    num_broken = tl.sum((logits != logits).to(tl.int32), 0)
    place = row * num_parts + part
    tl.store(highest_ptr + place, tl.where(num_broken > 0, float("nan"), highest))
    tl.store(best_ptr + place, part * PART + tl.argmax(logits, 0))


@triton.jit
def _highest_of_row(highest_ptr, row, num_parts, BLOCK_PARTS: tl.constexpr):
    """Returns the largest logit of a row, its part, and whether the row is of numbers."""
    parts = tl.arange(0, BLOCK_PARTS)
    found = tl.load(highest_ptr + row * num_parts + parts, mask=parts < num_parts, other=float("-inf"))
    num_broken = tl.sum((found != found).to(tl.int32), 0)
    found = tl.where(found != found, float("-inf"), found)
    highest = tl.max(found, 0)
    is_valid = (num_broken == 0) & (highest > float("-inf")) & (highest < float("inf"))
    return highest, tl.argmax(found, 0), is_valid


@triton.jit
def weigh_kernel(
    logits_ptr, temperature_ptr, highest_ptr, mass_ptr, equals_ptr, thresholds_ptr, limits_ptr,
    row_stride, vocab_size,
    PART: tl.constexpr, BLOCK_PARTS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Overwrites logits with exp((logit - highest) / temperature), and sums each part, of which all is kept so far."""
    part, row, num_parts = begin_part(IS_DEPENDENT)
    temperature = tl.load(temperature_ptr + row)
    highest, _, is_valid = _highest_of_row(highest_ptr, row, num_parts, BLOCK_PARTS)
    if temperature > 0:
        columns, places = places_of_part(logits_ptr, row, part, row_stride, PART)
        mask = columns < vocab_size
        logits = tl.load(places, mask=mask, other=float("-inf"))
        # A row that is not of numbers goes on as one in which all weigh the same.
        distances = tl.where(is_valid, logits, 0.0) - tl.where(is_valid, highest, 0.0)
        weights = tl.exp(distances / tl.maximum(temperature, 1e-30))
        tl.store(places, weights, mask=mask)
        tl.store(mass_ptr + row * num_parts + part, tl.sum(weights, 0))
        tl.store(equals_ptr + row * num_parts + part, 0.0)
        if part == 0:
            tl.store(thresholds_ptr + row, 0.0)
            tl.store(limits_ptr + row, 4294967296.0)


@triton.jit
def draw_kernel(
    logits_ptr, temperature_ptr, min_p_ptr, draws_ptr, highest_ptr, best_ptr, mass_ptr, equals_ptr, thresholds_ptr,
    limits_ptr, ids_ptr, is_valid_ptr,
    row_stride, vocab_size, num_parts,
    HAS_RANDOM: tl.constexpr, PART: tl.constexpr, BLOCK_PARTS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Draws the first kept column where the running sum of kept weights exceeds the draw's share; else the last one."""
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    row = tl.program_id(0)
    _, best_part, is_valid = _highest_of_row(highest_ptr, row, num_parts, BLOCK_PARTS)
    tl.store(is_valid_ptr + row, is_valid.to(tl.int8))
    chosen = tl.load(best_ptr + row * num_parts + best_part)
    if HAS_RANDOM:
        if is_valid & (tl.load(temperature_ptr + row) > 0):
            threshold = tl.load(thresholds_ptr + row)
            parts = tl.arange(0, BLOCK_PARTS)
            is_part = parts < num_parts
            equals = tl.load(equals_ptr + row * num_parts + parts, mask=is_part, other=0.0)
            num_before = tl.cumsum(equals, 0) - equals
            taken = tl.minimum(tl.maximum(tl.load(limits_ptr + row) - num_before, 0.0), equals)
            mass = tl.load(mass_ptr + row * num_parts + parts, mask=is_part, other=0.0) + taken * threshold
            running = tl.cumsum(mass, 0)
            target = tl.load(draws_ptr + row) * tl.sum(mass, 0)
            first = tl.min(tl.where((mass > 0) & (running > target), parts, BLOCK_PARTS), 0)
            last = tl.max(tl.where(mass > 0, parts, 0), 0)
            part = tl.where(first < BLOCK_PARTS, first, last)
            is_chosen = parts == part
            target -= tl.sum(tl.where(is_chosen, running - mass, 0.0), 0)
            limit = tl.sum(tl.where(is_chosen, taken, 0.0), 0)

            columns, places = places_of_part(logits_ptr, row, part, row_stride, PART)
            weights = tl.load(places, mask=columns < vocab_size, other=-1.0)
            is_possible = (weights >= tl.load(min_p_ptr + row)) & (weights > 0)
            is_equal = (weights == threshold) & is_possible
            rank = tl.cumsum(is_equal.to(tl.float32), 0)
            is_kept = ((weights > threshold) & is_possible) | (is_equal & (rank <= limit))
            running_inside = tl.cumsum(tl.where(is_kept, weights, 0.0), 0)
            found = tl.min(tl.where(is_kept & (running_inside > target), columns, vocab_size), 0)
            last_kept = tl.max(tl.where(is_kept, columns, -1), 0)
            found = tl.where(found < vocab_size, found, last_kept)
            chosen = tl.where(found >= 0, found, chosen)
    tl.store(ids_ptr + row, chosen.to(tl.int64))
