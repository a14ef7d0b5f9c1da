"""Works out the inputs of a step's rows on the device, from a few numbers a row.

A CUDA graph reads its inputs from fixed places. The host fills one buffer with four numbers a row and the block tables,
a copy brings it to the device, and this kernel, part of the graph, makes the rest: the token (the step before may have
just sampled it, so that the host has not seen it), the slot of its key, its angles, its LogN factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from model.backends.cuda.kernels.dependent_launch import let_successor_start, wait_for_predecessor
from model.backends.cuda.kernels.launch import launch, next_power_of_2

# Of each row: a token id (-1 - i: the i-th of the last sampled ones), its position (-1: an unused row), the row of its
# alpha among the angle tables, where its blocks begin in the table.
NUM_FIELDS = 4


class AngleTables(NamedTuple):
    """Rotary angles and query factors of every position, made once.

    Attributes:
        cos: [number of alphas, max_model_len, rotary_dim / 2] float32.
        sin: the same.
        query_scale: [max_model_len] float32.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor


class DecodeInputs(NamedTuple):
    """Inputs of B rows.

    Attributes:
        token_ids: [B] int64.
        slots: [B] int64, -1 for unused rows.
        lengths: [B] int32, 0 for unused rows.
        table_starts: [B] int32.
        cos: [B, rotary_dim / 2] float32.
        sin: the same.
        query_scale: [B] float32.
    """

    token_ids: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    table_starts: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor


@triton.jit
def _decode_inputs_kernel(
    fields_ptr, table_ptr, last_ids_ptr, cos_table_ptr, sin_table_ptr, scale_table_ptr, token_ids_ptr, slots_ptr,
    lengths_ptr, table_starts_ptr, cos_ptr, sin_ptr, query_scale_ptr,
    num_positions,
    BLOCK_SIZE: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, IS_DEPENDENT: tl.constexpr,
):  # fmt: skip
    wait_for_predecessor(IS_DEPENDENT)
    let_successor_start(IS_DEPENDENT)
    row = tl.program_id(0)
    fields = fields_ptr + row * 4
    token = tl.load(fields).to(tl.int64)
    position = tl.load(fields + 1)
    alpha = tl.load(fields + 2).to(tl.int64)
    table_start = tl.load(fields + 3).to(tl.int64)
    is_used = position >= 0
    sampled = tl.load(last_ids_ptr + tl.maximum(-1 - token, 0), mask=token < 0, other=0)
    tl.store(token_ids_ptr + row, tl.where(is_used, tl.where(token < 0, sampled, token), 0))
    place = tl.maximum(position, 0)
    block = tl.load(table_ptr + table_start + place // BLOCK_SIZE, mask=is_used, other=0).to(tl.int64)
    tl.store(slots_ptr + row, tl.where(is_used, block * BLOCK_SIZE + place % BLOCK_SIZE, -1))
    tl.store(lengths_ptr + row, position + 1)
    tl.store(table_starts_ptr + row, table_start.to(tl.int32))
    tl.store(query_scale_ptr + row, tl.load(scale_table_ptr + place))
    dims = tl.arange(0, BLOCK_HALF)
    mask = dims < HALF
    angles = (alpha * num_positions + place) * HALF + dims
    tl.store(cos_ptr + row * HALF + dims, tl.load(cos_table_ptr + angles, mask=mask), mask=mask)
    tl.store(sin_ptr + row * HALF + dims, tl.load(sin_table_ptr + angles, mask=mask), mask=mask)


def make_decode_inputs(
    fields: torch.Tensor, table: torch.Tensor, last_ids: torch.Tensor, angles: AngleTables, block_size: int
) -> DecodeInputs:
    """Works out the rows of a decode step.

    Args:
        fields: [B, 4] int32, contiguous.
        table: [any] int32, block numbers.
        last_ids: [any] int64, what the step before sampled.
        angles: angles of all positions.
        block_size: tokens in a block.
    """
    num_rows, half = len(fields), angles.cos.shape[2]

    def new(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=fields.device)

    out = DecodeInputs(
        token_ids=new(num_rows, dtype=torch.int64),
        slots=new(num_rows, dtype=torch.int64),
        lengths=new(num_rows, dtype=torch.int32),
        table_starts=new(num_rows, dtype=torch.int32),
        cos=new(num_rows, half, dtype=torch.float32),
        sin=new(num_rows, half, dtype=torch.float32),
        query_scale=new(num_rows, dtype=torch.float32),
    )
    launch(
        _decode_inputs_kernel,
        (num_rows,),
        fields, table, last_ids, *angles, *out,
        angles.cos.shape[1],
        BLOCK_SIZE=block_size, HALF=half, BLOCK_HALF=next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    return out
