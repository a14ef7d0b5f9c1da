"""Rows of logits are cut into parts, one a program."""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor


@triton.jit
def begin_part(IS_DEPENDENT: tl.constexpr):
    """Waits for the launch before; returns the program's part and row, and the number of parts of a row."""
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    return tl.program_id(0), tl.program_id(1), tl.num_programs(0)


@triton.jit
def places_of_part(logits_ptr, row, part, row_stride, PART: tl.constexpr):
    """Returns the columns of a part, [PART], and where they lie."""
    columns = part * PART + tl.arange(0, PART)
    return columns, logits_ptr + row.to(tl.int64) * row_stride + columns
