"""Greedy choice, temperature, top_k, top_p, min_p and the draw: no sort, no host, every row spread over the device.

What the filters keep of a row is everything above some weight, and some of those that equal it. That weight is looked
for on its bits: floats of one sign are ordered as their bits are, so a round tries 32 thresholds and settles five bits;
six rounds settle all 30 that a weight of at most 1 can have. Sorting moves each of 151,936 logits several times, and a
top-k of fixed size is not exact.

A row is cut into parts, each of them a program of its own: one multiprocessor alone needs 20 microseconds to read a
row, which it would have to do a dozen times. Programs do not wait for one another; what they found of their parts is
added up, in the order of the parts, by all programs of the next launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2

# Numbers of a row that one program looks at: 16 a thread.
_PART = 4096
_ROUND_BITS = tl.constexpr(5)
_NUM_ROUNDS = 6
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


class _Parts(NamedTuple):
    """What the programs leave for those of the next launch; S rows of P parts.

    Attributes:
        highest: [S, P] float32, the largest logit of each part; NaN where one of its logits is.
        best: [S, P] int32, the first column that has it.
        mass: [S, P] float32, of the weights above the threshold.
        equals: [S, P] float32, how many equal the threshold.
        amounts: [2, S, P, 32] float32, mass or number at or above each threshold of a round; rounds take turns.
        bounds: [6, S] int32, the least bits that a threshold may have, in each round.
        above: [6, S] float32, what is at or above the interval in which it lies.
        targets: [S] float32, what is to be reached.
        thresholds: [2, S] float32, by top_k and by top_p.
        limits: [2, S] float32, how many of those that equal it are kept.
    """

    highest: torch.Tensor
    best: torch.Tensor
    mass: torch.Tensor
    equals: torch.Tensor
    amounts: torch.Tensor
    bounds: torch.Tensor
    above: torch.Tensor
    targets: torch.Tensor
    thresholds: torch.Tensor
    limits: torch.Tensor

    def round(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Amounts, bounds and what is above, of one round; -1 stands for what the first one does not read."""
        return self.amounts[number % 2], self.bounds[number], self.above[number]


@triton.jit
def _survey_kernel(
    logits_ptr, highest_ptr, best_ptr, row_stride, vocab_size, PART: tl.constexpr, IS_DEPENDENT: tl.constexpr
):
    """The largest logit of each part, and where it is."""
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    part = tl.program_id(0)
    row = tl.program_id(1)
    columns = part * PART + tl.arange(0, PART)
    mask = columns < vocab_size
    logits = tl.load(logits_ptr + row.to(tl.int64) * row_stride + columns, mask=mask, other=float("-inf"))
    highest = tl.max(logits, 0)
    num_broken = tl.sum((logits != logits).to(tl.int32), 0)
    place = row * tl.num_programs(0) + part
    tl.store(highest_ptr + place, tl.where(num_broken > 0, float("nan"), highest))
    tl.store(best_ptr + place, part * PART + tl.argmax(logits, 0))


@triton.jit
def _highest_of_row(highest_ptr, row, num_parts, BLOCK_PARTS: tl.constexpr):
    """The largest logit of a row, in which part it is, and whether the row is of numbers."""
    parts = tl.arange(0, BLOCK_PARTS)
    found = tl.load(highest_ptr + row * num_parts + parts, mask=parts < num_parts, other=float("-inf"))
    num_broken = tl.sum((found != found).to(tl.int32), 0)
    found = tl.where(found != found, float("-inf"), found)
    highest = tl.max(found, 0)
    is_valid = (num_broken == 0) & (highest > float("-inf")) & (highest < float("inf"))
    return highest, tl.argmax(found, 0), is_valid


@triton.jit
def _weigh_kernel(
    logits_ptr,
    temperature_ptr,
    highest_ptr,
    mass_ptr,
    equals_ptr,
    thresholds_ptr,
    limits_ptr,
    row_stride,
    vocab_size,
    PART: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Overwrites logits with exp((logit - highest) / temperature), and sums each part: all of it is kept so far."""
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    part = tl.program_id(0)
    row = tl.program_id(1)
    num_parts = tl.num_programs(0)
    temperature = tl.load(temperature_ptr + row)
    highest, _, is_valid = _highest_of_row(highest_ptr, row, num_parts, BLOCK_PARTS)
    if temperature > 0:
        columns = part * PART + tl.arange(0, PART)
        mask = columns < vocab_size
        places = logits_ptr + row.to(tl.int64) * row_stride + columns
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
def _is_searched(temperature_ptr, top_k_ptr, top_p_ptr, row, vocab_size, BY_MASS: tl.constexpr):
    """Whether a row has this filter."""
    is_random = tl.load(temperature_ptr + row) > 0
    if BY_MASS:
        has_filter = tl.load(top_p_ptr + row) < 1.0
    else:
        top_k = tl.load(top_k_ptr + row)
        has_filter = (top_k > 0) & (top_k < vocab_size)
    return is_random & has_filter


@triton.jit
def _settle(amounts_ptr, low, above, target, row, num_parts, shift, BLOCK_PARTS: tl.constexpr):
    """Five more bits of a row's threshold: the least it may have now, what is above its interval, and which it is."""
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
def _narrow_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    mass_ptr,
    equals_ptr,
    last_thresholds_ptr,
    last_limits_ptr,
    last_amounts_ptr,
    last_bounds_ptr,
    last_above_ptr,
    amounts_ptr,
    bounds_ptr,
    above_ptr,
    targets_ptr,
    row_stride,
    vocab_size,
    shift,
    BY_MASS: tl.constexpr,
    IS_FIRST: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """One round: settles what the round before found, and looks at the 32 thresholds of the next five bits."""
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    part = tl.program_id(0)
    row = tl.program_id(1)
    num_parts = tl.num_programs(0)
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
                shift + _ROUND_BITS,
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
            columns = part * PART + tl.arange(0, PART)
            places = logits_ptr + row.to(tl.int64) * row_stride + columns
            weights = tl.load(places, mask=columns < vocab_size, other=-1.0)
            for number in tl.range(0, 32):
                threshold = (low + (number << shift)).to(tl.float32, bitcast=True)
                amount = tl.sum(tl.where(weights >= threshold, weights if BY_MASS else 1.0, 0.0), 0)
                amounts = tl.where(steps == number, amount, amounts)
        tl.store(amounts_ptr + place * 32 + steps, amounts)


@triton.jit
def _keep_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    mass_ptr,
    equals_ptr,
    amounts_ptr,
    bounds_ptr,
    above_ptr,
    targets_ptr,
    last_thresholds_ptr,
    last_limits_ptr,
    thresholds_ptr,
    limits_ptr,
    row_stride,
    vocab_size,
    BY_MASS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """What a search found becomes the row's threshold; then each part says what of it is kept."""
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    part = tl.program_id(0)
    row = tl.program_id(1)
    num_parts = tl.num_programs(0)
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
        columns = part * PART + tl.arange(0, PART)
        places = logits_ptr + row.to(tl.int64) * row_stride + columns
        weights = tl.load(places, mask=columns < vocab_size, other=-1.0)
        is_kept = (weights > threshold) & (weights >= floor) & (weights > 0)
        mass = tl.sum(tl.where(is_kept, weights, 0.0), 0)
        is_equal = (weights == threshold) & (weights >= floor) & (weights > 0)
        equals = tl.sum(is_equal.to(tl.float32), 0)
        place = row * num_parts + part
        tl.store(mass_ptr + place, mass)
        tl.store(equals_ptr + place, equals)


@triton.jit
def _draw_kernel(
    logits_ptr,
    temperature_ptr,
    min_p_ptr,
    draws_ptr,
    highest_ptr,
    best_ptr,
    mass_ptr,
    equals_ptr,
    thresholds_ptr,
    limits_ptr,
    ids_ptr,
    is_valid_ptr,
    row_stride,
    vocab_size,
    num_parts,
    HAS_RANDOM: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """The first kept column where the running sum of kept weights exceeds the draw's share; if none, the last kept."""
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

            columns = part * PART + tl.arange(0, PART)
            places = logits_ptr + row.to(tl.int64) * row_stride + columns
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


def sample_rows(
    logits: torch.Tensor,
    filters: RowFilters,
    *,
    has_random: bool = True,
    has_top_k: bool = True,
    has_top_p: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks a token for each row.

    Args:
        logits: [S, vocab_size] float32, rows of any stride; overwritten where the temperature is above 0.
        filters: of the S rows.
        has_random: whether any row has a temperature above 0.
        has_top_k: whether any of those may have a top_k.
        has_top_p: whether any of those may have a top_p below 1.

    Returns:
        ids [S] int64, and [S] bool: whether the row was of numbers (if not, its id means nothing).
    """
    num_rows, vocab_size = logits.shape
    parts = _allocate(num_rows, triton.cdiv(vocab_size, _PART), logits.device)
    highest, best, temperature = parts.highest, parts.best, filters.temperature
    _over_parts(_survey_kernel, logits, highest, best, PART=_PART)
    block_parts = next_power_of_2(highest.shape[1])
    constants = {"PART": _PART, "BLOCK_PARTS": block_parts}
    kept = (parts.mass, parts.equals)
    by_top_k, by_top_p = ((parts.thresholds[i], parts.limits[i]) for i in range(2))
    if has_random:
        _over_parts(_weigh_kernel, logits, temperature, highest, *kept, *by_top_k, **constants)
        for by_mass, is_used in ((False, has_top_k), (True, has_top_p)):
            tensors = (temperature, filters.top_k, filters.top_p)
            for number in range(_NUM_ROUNDS if is_used else 0):
                _over_parts(
                    _narrow_kernel, logits, *tensors, *kept, *by_top_k, *parts.round(number - 1), *parts.round(number),
                    parts.targets, shift=_ROUND_BITS.value * (_NUM_ROUNDS - 1 - number), BY_MASS=by_mass,
                    IS_FIRST=number == 0, **constants,
                )  # fmt: skip
            if is_used or by_mass:
                _over_parts(
                    _keep_kernel, logits, *tensors, filters.min_p, *kept, *parts.round(_NUM_ROUNDS - 1), parts.targets,
                    *by_top_k, *(by_top_p if by_mass else by_top_k), BY_MASS=by_mass, **constants,
                )  # fmt: skip
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    is_valid = torch.empty(num_rows, dtype=torch.int8, device=logits.device)
    launch(
        _draw_kernel, (num_rows,), logits, temperature, filters.min_p, filters.draws, highest, best, *kept, *by_top_p,
        ids, is_valid, logits.stride(0), vocab_size, highest.shape[1], HAS_RANDOM=has_random, **constants, num_warps=8,
    )  # fmt: skip
    return ids, is_valid.bool()


def _allocate(num_rows: int, num_parts: int, device: torch.device) -> _Parts:
    # Rows are padded, so that kernels see the same alignment in every slice.
    padded = -(-num_rows // 4) * 4

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return _Parts(
        highest=new(num_rows, num_parts),
        best=new(num_rows, num_parts, dtype=torch.int32),
        mass=new(num_rows, num_parts),
        equals=new(num_rows, num_parts),
        amounts=new(2, num_rows, num_parts, 32),
        bounds=new(_NUM_ROUNDS, padded, dtype=torch.int32),
        above=new(_NUM_ROUNDS, padded),
        targets=new(num_rows),
        thresholds=new(2, padded),
        limits=new(2, padded),
    )


def _over_parts(
    kernel: Any, logits: torch.Tensor, *tensors: torch.Tensor, shift: int | None = None, **constants: Any
) -> None:
    """Starts a kernel with a program for each part of each row."""
    num_rows, vocab_size = logits.shape
    sizes = (logits.stride(0), vocab_size) if shift is None else (logits.stride(0), vocab_size, shift)
    launch(kernel, (triton.cdiv(vocab_size, _PART), num_rows), logits, *tensors, *sizes, **constants, num_warps=8)
