"""The trials of kernels: inputs of a small and an odd size, drawn anew from a fixed seed for kernel and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from model.backends.cuda.gptq_layout import FINEST_GROUP
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.backends.cuda.kernels.decode_inputs import AngleTables
from model.backends.cuda.kernels.matmul.gptq_matmul import MAX_ROWS_OF_TILES
from model.backends.cuda.operations import Operation
from model.backends.cuda.self_check import matmul_trials, sampling_trial
from model.backends.cuda.self_check.inputs import Draw, DrawnCache, KernelShape


class Trial(NamedTuple):
    """A trial of a kernel.

    Attributes:
        run: calls the kernel, or torch's operation, with inputs of a size; returns all that it made.
        sizes: first a small one.
    """

    run: Callable[[Any, KernelShape, int], list[torch.Tensor]]
    sizes: tuple[int, ...]


def _rms_norm(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    hidden, dtype = shape.hidden_size, shape.dtype
    weight = (draw.normal(hidden) / 4 + 1).to(dtype)
    residual = draw.normal(size, hidden)
    alone = operation(draw.normal(size, hidden), weight, 1e-6)
    delta = draw.normal(size, 2 * hidden, dtype=dtype)[:, :hidden]
    return [alone, operation(delta, weight, 1e-6, residual), residual]


def _silu_mul(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    both = Draw(shape, size).normal(size, 2 * (shape.hidden_size + 3), dtype=shape.dtype) * 3
    gate, up = both.chunk(2, -1)
    return [operation(gate, up)]


def _rotate_and_cache(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    draw = Draw(shape, size)
    cache = DrawnCache.drawn(draw, shape, 16)
    qkv = draw.normal(size, 3 * shape.num_heads * shape.head_dim, dtype=shape.dtype)
    angles = draw.normal(size, shape.rotary_dim // 2) * 9
    slots = draw.permutation(16)[:size]
    slots[1:2] = -1
    scale = draw.normal(size).abs()
    query = operation(qkv, angles.cos(), angles.sin(), scale, slots, cache.data, cache.scales)
    return [query, cache.numbers()]


def _decode_attention(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """One short context in one part; or several, one of them empty, one in more parts than are merged at once."""
    draw = Draw(shape, size)
    lengths = [5] if size == 1 else [1, 0, 299][:size]
    counts = [-(-length // shape.block_size) for length in lengths]
    cache = DrawnCache.drawn(draw, shape, (sum(counts) + 1) * shape.block_size)
    table = draw.permutation(sum(counts) + 1)[: sum(counts)].to(torch.int32)
    starts = [sum(counts[:i]) for i in range(size)]
    rows = list(range(size))[::-1]
    numbers = [torch.tensor(x, dtype=torch.int32, device=shape.device) for x in (rows, lengths, starts)]
    query = (draw.normal(size, shape.num_heads, shape.head_dim) / shape.head_dim**0.5).to(shape.dtype)
    decodes = DecodeRows(numbers[0], numbers[1], numbers[2], table)
    options: dict[str, int] = {"block_size": shape.block_size, "num_splits": 1 if size == 1 else 20}
    outs = []
    for window in (0, 3, 70) if shape.has_windows else (0,):
        outs.append(torch.full_like(query, float("nan")))
        operation(query, *cache, decodes, outs[-1], window=window, **options)
    return outs


def _prefill_attention(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """A chunk at the start of its sequence, and one of an odd length behind others."""
    draw = Draw(shape, size)
    chunks = [(0, size), (21, 3)]  # position, rows
    counts = [-(-(position + rows) // shape.block_size) for position, rows in chunks]
    cache = DrawnCache.drawn(draw, shape, sum(counts) * shape.block_size)
    table = draw.permutation(sum(counts)).to(torch.int32)
    block_rows = choose_block_rows(shape.dtype, size)
    records = tile_records([(0, *chunks[0], 0), (size, *chunks[1], counts[0])], block_rows)
    tiles = PrefillTiles(torch.tensor(records, dtype=torch.int32, device=shape.device), table, block_rows)
    query = (draw.normal(size + 3, shape.num_heads, shape.head_dim) / shape.head_dim**0.5).to(shape.dtype)
    outs = []
    for window in (0, 3, 70) if shape.has_windows else (0,):
        outs.append(torch.full_like(query, float("nan")))
        operation(query, *cache, tiles, outs[-1], block_size=shape.block_size, window=window)
    return outs


def _make_decode_inputs(operation: Operation, shape: KernelShape, size: int) -> list[torch.Tensor]:
    """The first token of a row is known, the next ones are of the step before, the third row is unused."""
    draw = Draw(shape, size)
    half = shape.rotary_dim // 2
    angles = AngleTables(draw.normal(2, 50, half), draw.normal(2, 50, half), draw.normal(50))
    rows = [(7, 20, 1, 0), (-3, 41, 0, 50), (0, -1, 0, 0)][:size]
    fields = torch.tensor(rows, dtype=torch.int32, device=shape.device)
    table = draw.permutation(100).to(torch.int32)
    inputs = operation(fields, table, draw.integers(0, 90, 5), angles, shape.block_size)
    is_used = inputs.lengths > 0
    return [*inputs[:3], *(part[is_used] for part in inputs[3:])]


TRIALS: dict[str, Trial] = {
    "rms_norm": Trial(_rms_norm, (1, 5)),
    "silu_mul": Trial(_silu_mul, (1, 5)),
    "rotate_and_cache": Trial(_rotate_and_cache, (1, 5)),
    "decode_attention": Trial(_decode_attention, (1, 3)),
    # One for each tile there is.
    "prefill_attention": Trial(_prefill_attention, (5, 33, 100)),
    "make_decode_inputs": Trial(_make_decode_inputs, (1, 3)),
    "sample_rows": Trial(sampling_trial.sample_rows, (300, 0)),
    "row_matmul": Trial(matmul_trials.row_matmul, (24, 37)),
    "add_low_rank": Trial(matmul_trials.add_low_rank, (1, 5)),
    "tile_matmul": Trial(matmul_trials.tile_matmul, (8, 19)),
    "gptq_one_row": Trial(matmul_trials.gptq, (1, -1)),
    # One for each tile there is.
    "gptq_few_rows": Trial(matmul_trials.gptq, (2, 12, -19, 40, 70)),
    "gptq_many_rows": Trial(matmul_trials.gptq, (MAX_ROWS_OF_TILES + 2, -MAX_ROWS_OF_TILES - 1)),
}


def trials_for(shape: KernelShape) -> dict[str, Trial]:
    """The trials of the kernels that a checkpoint runs."""
    has_gptq = shape.bits is not None and (shape.group_size == -1 or shape.group_size % FINEST_GROUP == 0)
    has_packed = has_gptq or bool(shape.packed_kinds)
    return {name: trial for name, trial in TRIALS.items() if has_packed or not name.startswith("gptq")}
