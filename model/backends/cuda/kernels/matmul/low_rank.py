"""Adds what adapters have for the rows of a step: `hidden = A x`, then `out += B hidden`, by a table of slots.

A program takes one row and a few ranks or outputs; a row without an adapter costs it a look at the table. Sums are
float32 in one order, so that what a row gets depends on the row and its adapter alone. Factors of all slots lie in two
tensors that never move, so that a recorded step finds them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch

BLOCK_RANKS = 16
_BLOCK_INPUTS = 256
_BLOCK_OUTPUTS = 64


@triton.jit
def _shrink_kernel(
    x_ptr, slots_ptr, a_ptr, hidden_ptr,
    in_features, num_ranks,
    BLOCK_RANKS: tl.constexpr, BLOCK_INPUTS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    wait_for_predecessor(IS_DEPENDENT)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        ranks = tl.program_id(1) * BLOCK_RANKS + tl.arange(0, BLOCK_RANKS)
        factors = a_ptr + (slot * num_ranks + ranks)[:, None] * in_features
        total = tl.zeros((BLOCK_RANKS, BLOCK_INPUTS), tl.float32)
        for start in tl.range(0, in_features, BLOCK_INPUTS):
            inputs = start + tl.arange(0, BLOCK_INPUTS)
            is_input = inputs < in_features
            a = tl.load(factors + inputs[None, :], mask=is_input[None, :], other=0.0)
            x = tl.load(x_ptr + row * in_features + inputs, mask=is_input, other=0.0)
            total += a.to(tl.float32) * x.to(tl.float32)[None, :]
        tl.store(hidden_ptr + row * num_ranks + ranks, tl.sum(total, 1))
    let_successor_start(IS_DEPENDENT)


@triton.jit
def _expand_kernel(
    out_ptr, slots_ptr, b_ptr, hidden_ptr,
    out_features, part_outputs, num_ranks, rank,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_RANKS: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    wait_for_predecessor(IS_DEPENDENT)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        outputs = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
        is_output = outputs < out_features
        factors = b_ptr + (slot * out_features + outputs)[:, None] * rank
        hidden = hidden_ptr + row * num_ranks + (outputs // part_outputs)[:, None] * rank
        total = tl.zeros((BLOCK_OUTPUTS, BLOCK_RANKS), tl.float32)
        for start in tl.range(0, rank, BLOCK_RANKS):
            ranks = start + tl.arange(0, BLOCK_RANKS)
            b = tl.load(factors + ranks[None, :], mask=is_output[:, None], other=0.0)
            h = tl.load(hidden + ranks[None, :], mask=is_output[:, None], other=0.0)
            total += b.to(tl.float32) * h
        place = out_ptr + row * out_features + outputs
        out = tl.load(place, mask=is_output, other=0.0).to(tl.float32) + tl.sum(total, 1)
        tl.store(place, out.to(out_ptr.dtype.element_ty), mask=is_output)
    let_successor_start(IS_DEPENDENT)


def add_low_rank(
    out: torch.Tensor, x: torch.Tensor, slots: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Adds to each row what its adapter has for it.

    Args:
        out: [T, N], contiguous; changed.
        x: [T, K], contiguous.
        slots: [T] int32, the slot of each row's adapter; -1 for none.
        a: [S, P * R, K]: for each of P equal parts of the outputs R ranks, a multiple of 16.
        b: [S, N, R], scaled.

    Returns:
        `out`.
    """
    num_rows, out_features = out.shape
    _, num_ranks, in_features = a.shape
    rank = b.shape[2]
    hidden = torch.empty((num_rows, num_ranks), dtype=torch.float32, device=x.device)
    launch(
        _shrink_kernel,
        (num_rows, num_ranks // BLOCK_RANKS),
        x, slots, a, hidden,
        in_features, num_ranks,
        BLOCK_RANKS=BLOCK_RANKS, BLOCK_INPUTS=_BLOCK_INPUTS, num_warps=4,
    )  # fmt: skip
    launch(
        _expand_kernel,
        (num_rows, triton.cdiv(out_features, _BLOCK_OUTPUTS)),
        out, slots, b, hidden,
        out_features, out_features * rank // num_ranks, num_ranks, rank,
        BLOCK_OUTPUTS=_BLOCK_OUTPUTS, BLOCK_RANKS=BLOCK_RANKS, num_warps=4,
    )  # fmt: skip
    return out
