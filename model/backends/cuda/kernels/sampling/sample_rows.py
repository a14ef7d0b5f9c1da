"""Samples with temperature, top_k, top_p and min_p: no sort, no host, every row spread over the device.

The filters keep of a row everything above some weight, and some of those that equal it. That weight is found by its
bits: floats of one sign are ordered as their bits are, so a round tries 32 thresholds and settles five bits;
six rounds settle all 30 that a weight of at most 1 can have. Sorting moves each of 151,936 logits several times, and a
top-k of fixed size is not exact.

A row is cut into parts, one a program: one multiprocessor alone needs 20 microseconds to read a row, and would have to
read it a dozen times. Programs do not wait for one another; all programs of the next launch add up what those of this
one found, in the order of the parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from model.backends.cuda.kernels.launch import launch, next_power_of_2
from model.backends.cuda.kernels.sampling.threshold_search import ROUND_BITS, keep_kernel, narrow_kernel
from model.backends.cuda.kernels.sampling.weights import draw_kernel, survey_kernel, weigh_kernel

# Numbers of a row that one program looks at: 16 a thread.
_PART = 4096
_NUM_ROUNDS = 6


class RowFilters(NamedTuple):
    """Sampling parameters of S rows.

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
    """Tensors by which programs tell those of the next launch what they found; S rows of P parts.

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
        filters: how the S rows are sampled.
        has_random: whether any row has a temperature above 0.
        has_top_k: whether any of those may have a top_k.
        has_top_p: whether any of those may have a top_p below 1.

    Returns:
        ids [S] int64, and [S] bool: whether the row was of numbers (if not, its id means nothing).
    """
    num_rows, vocab_size = logits.shape
    parts = _allocate(num_rows, triton.cdiv(vocab_size, _PART), logits.device)
    highest, best, temperature = parts.highest, parts.best, filters.temperature
    _over_parts(survey_kernel, logits, highest, best, PART=_PART)
    block_parts = next_power_of_2(highest.shape[1])
    constants = {"PART": _PART, "BLOCK_PARTS": block_parts}
    kept = (parts.mass, parts.equals)
    by_top_k, by_top_p = ((parts.thresholds[i], parts.limits[i]) for i in range(2))
    if has_random:
        _over_parts(weigh_kernel, logits, temperature, highest, *kept, *by_top_k, **constants)
        for by_mass, is_used in ((False, has_top_k), (True, has_top_p)):
            tensors = (temperature, filters.top_k, filters.top_p)
            for number in range(_NUM_ROUNDS if is_used else 0):
                _over_parts(
                    narrow_kernel, logits, *tensors, *kept, *by_top_k, *parts.round(number - 1), *parts.round(number),
                    parts.targets, shift=ROUND_BITS.value * (_NUM_ROUNDS - 1 - number), BY_MASS=by_mass,
                    IS_FIRST=number == 0, **constants,
                )  # fmt: skip
            if is_used or by_mass:
                _over_parts(
                    keep_kernel, logits, *tensors, filters.min_p, *kept, *parts.round(_NUM_ROUNDS - 1), parts.targets,
                    *by_top_k, *(by_top_p if by_mass else by_top_k), BY_MASS=by_mass, **constants,
                )  # fmt: skip
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    is_valid = torch.empty(num_rows, dtype=torch.int8, device=logits.device)
    launch(
        draw_kernel, (num_rows,), logits, temperature, filters.min_p, filters.draws, highest, best, *kept, *by_top_p,
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
