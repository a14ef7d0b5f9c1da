"""Finds the weight above which a row's weights are kept, by top_k or by top_p.

A program looks at one part of one row, as in `weights`. `sample_rows` decides how often a round is launched.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.cuda.kernels.sampling.parts import begin_part, places_of_part

# Bits of a threshold that one round settles, by looking at 32 of them.
ROUND_BITS = tl.constexpr(5)
_ONE_BITS = tl.constexpr(0x3F800000)


@triton.jit
def _is_searched(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size, BY_MASS: tl.constexpr):
    """Returns whether a row has this filter."""
    is_random = tl.load(temperature_ptr + row) > 0
    if BY_MASS:
        has_filter = tl.load(top_p_ptr + row) < 1.0
    else:
        top_k = tl.load(top_k_ptr + row)
        has_filter = (top_k > 0) & (top_k < vocab_size)
    return is_random & has_filter


@triton.jit
def _settle(amounts_ptr, low, above, target, row, num_parts, shift, BLOCK_PARTS: tl.constexpr):
    """Settles five bits of a row's threshold; returns its least bits, what is above its interval, and its place."""
    parts = tl.arange(0, BLOCK_PARTS)
    steps = tl.arange(0, 32)
    places = (row * num_parts + parts)[:, None] * 32 + steps[None, :]
    found = tl.sum(tl.load(amounts_ptr + places, mask=(parts < num_parts)[:, None], other=0.0), 0)
    # The first threshold is reached whatever rounding says: it was in the round before.
    is_reached = ((found >= target) & (low + (steps << shift) <= _ONE_BITS)) | (steps == 0)
    step = tl.max(tl.where(is_reached, steps, 0), 0)
    next_above = tl.sum(tl.where(steps == step + 1, found, 0.0), 0)
    return low + (step << shift), tl.where(step == 31, above, next_above), step


@triton.jit(do_not_specialize=["shift"])  # one of the shifts is 0, which would be compiled by itself
def narrow_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, mass_ptr, equals_ptr, last_thresholds_ptr, last_limits_ptr,
    last_amounts_ptr, last_bounds_ptr, last_above_ptr, amounts_ptr, bounds_ptr, above_ptr, targets_ptr,
    row_stride, vocab_size, shift,
    BY_MASS: tl.constexpr, IS_FIRST: tl.constexpr, PART: tl.constexpr, BLOCK_PARTS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Settles what the round before found, and sums what is above the 32 thresholds of the next five bits."""
    part, row, num_parts = begin_part(IS_DEPENDENT)
    if _is_searched(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size, BY_MASS):
        place = row * num_parts + part
        steps = tl.arange(0, 32)
        is_empty = False
        inside = 0.0
        if IS_FIRST:
            low = 0
            above = 0.0
            if BY_MASS:
                parts = tl.arange(0, BLOCK_PARTS)
                found = row * num_parts + parts
                mass = tl.sum(tl.load(mass_ptr + found, mask=parts < num_parts, other=0.0), 0)
                num_equal = tl.sum(tl.load(equals_ptr + found, mask=parts < num_parts, other=0.0), 0)
                num_kept = tl.minimum(num_equal, tl.load(last_limits_ptr + row))
                mass += num_kept * tl.load(last_thresholds_ptr + row)
                target = tl.load(top_p_ptr + row) * mass
            else:
                target = tl.load(top_k_ptr + row).to(tl.float32)
            if part == 0:
                tl.store(targets_ptr + row, target)
        else:
            low, above, step = _settle(
                last_amounts_ptr,
                tl.load(last_bounds_ptr + row),
                tl.load(last_above_ptr + row),
                tl.load(targets_ptr + row),
                row,
                num_parts,
                shift + ROUND_BITS,
                BLOCK_PARTS,
            )
            # Where the amounts at both ends are the same, the part has nothing in between and need not be read.
            own = last_amounts_ptr + place * 32
            inside = tl.load(own + step)
            is_empty = (step < 31) & (inside == tl.load(own + tl.minimum(step + 1, 31)))
        if part == 0:
            tl.store(bounds_ptr + row, low)
            tl.store(above_ptr + row, above)
        amounts = tl.zeros([32], tl.float32) + inside
        if not is_empty:
            columns, places = places_of_part(logits_ptr, row, part, row_stride, PART)
            weights = tl.load(places, mask=columns < vocab_size, other=-1.0)
            for number in tl.range(0, 32):
                threshold = (low + (number << shift)).to(tl.float32, bitcast=True)
                amount = tl.sum(tl.where(weights >= threshold, weights if BY_MASS else 1.0, 0.0), 0)
                amounts = tl.where(steps == number, amount, amounts)
        tl.store(amounts_ptr + place * 32 + steps, amounts)


@triton.jit
def keep_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, mass_ptr, equals_ptr, amounts_ptr, bounds_ptr,
    above_ptr, targets_ptr, last_thresholds_ptr, last_limits_ptr, thresholds_ptr, limits_ptr,
    row_stride, vocab_size,
    BY_MASS: tl.constexpr, PART: tl.constexpr, BLOCK_PARTS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Makes what a search found the row's threshold; then sums what each part keeps."""
    part, row, num_parts = begin_part(IS_DEPENDENT)
    if tl.load(temperature_ptr + row) > 0:
        threshold = tl.load(last_thresholds_ptr + row)
        limit = tl.load(last_limits_ptr + row)
        if _is_searched(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size, BY_MASS):
            target = tl.load(targets_ptr + row)
            low, above, _ = _settle(
                amounts_ptr, tl.load(bounds_ptr + row), tl.load(above_ptr + row), target, row, num_parts, 0, BLOCK_PARTS
            )
            found = low.to(tl.float32, bitcast=True)
            wanted = target - above
            if BY_MASS:
                wanted = tl.maximum(tl.ceil(wanted / tl.maximum(found, 1e-30)), 1.0)
            # top_p may end above what top_k left, or among its last, never below.
            limit = tl.where(found > threshold, wanted, tl.where(found == threshold, tl.minimum(limit, wanted), limit))
            threshold = tl.maximum(found, threshold)
        # By top_k this overwrites what other programs may not have read yet; with the new values they find the same.
        if part == 0:
            tl.store(thresholds_ptr + row, threshold)
            tl.store(limits_ptr + row, limit)
        # The mass that top_p shares out is that of top_k, whatever min_p says.
        floor = tl.load(min_p_ptr + row) if BY_MASS else 0.0
        columns, places = places_of_part(logits_ptr, row, part, row_stride, PART)
        weights = tl.load(places, mask=columns < vocab_size, other=-1.0)
        is_kept = (weights > threshold) & (weights >= floor) & (weights > 0)
        mass = tl.sum(tl.where(is_kept, weights, 0.0), 0)
        is_equal = (weights == threshold) & (weights >= floor) & (weights > 0)
        equals = tl.sum(is_equal.to(tl.float32), 0)
        place = row * num_parts + part
        tl.store(mass_ptr + place, mass)
        tl.store(equals_ptr + place, equals)
