"""Products with 4- and 8-bit weights and 16- or 32-bit activations.

Two ways, by the number of rows:
- up to 256: tiles are unpacked to the activations' dtype as integers (exact), multiplied on tensor cores, and scaled in
  float32 once a group; less is rounded than in a dequantised weight. One row goes the same way: with tensor cores a
  weight costs a thread two instructions and a half, with plain multiply-adds four.
- more: slices of the weight are dequantised into a buffer that stays in the L2 cache, for cuBLAS to multiply.
The first splits the inputs over programs; the last one to finish adds the parts, in a fixed order.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton

from model.backends.cuda.gptq_layout import PackedWeight
from model.backends.cuda.kernels.launch import launch, zeros_for_counting
from model.backends.cuda.kernels.matmul.gptq_dequantize import (
    IN_BFLOAT16,
    IN_FLOAT16,
    IN_FLOAT32,
    compiled_for,
    dequantize,
)
from model.backends.cuda.kernels.matmul.gptq_tile_kernel import tile_kernel

# From here on a product is bound by arithmetic, and cuBLAS's is worth a pass over the weight.
MAX_ROWS_OF_TILES = 256

# More rows than these are permuted beforehand, not value by value as they are read.
_MAX_ROWS_TO_GATHER = 16

# Bytes that are dequantised at a time: a fraction of an H200's 50 MB of L2.
_SLICE_BYTES = 24 << 20

# Adding up a part takes longer than a few steps more.
_MAX_SPLITS = 16
_MIN_STEPS_PER_SPLIT = 4

_IN_FLOAT32: int = IN_FLOAT32.value
_UNPACKING: dict[torch.dtype, int] = {torch.bfloat16: IN_BFLOAT16.value, torch.float16: IN_FLOAT16.value}


class Tiles(NamedTuple):
    """The tiles that a product is cut into.

    Attributes:
        warp_tiles: the number of warps where each takes tiles of its own, 0 where they share one.
        tokens: rows of a program.
        columns: outputs of a program.
        num_warps: warps of a program.
        num_stages: stages of software pipelining.
        wanted_warps: the inputs are split where there are fewer warps.
    """

    warp_tiles: int
    tokens: int
    columns: int
    num_warps: int
    num_stages: int = 3
    wanted_warps: int = 1056


def choose_tiles(num_rows: int, out_features: int, dtype: torch.dtype) -> Tiles:
    """Returns the tiles for a number of rows, by a table of what an H200 was fastest with (`benchmarks.gptq_tiles`)."""
    if dtype == torch.float32:  # exact, so not on tensor cores
        return Tiles(0, 16, 64, 4)
    if num_rows <= 8:
        if out_features <= 8192:
            return Tiles(4, 8, 16, 4, wanted_warps=528)
        return Tiles(4, 8, 32, 4, wanted_warps=528) if out_features <= 16384 else Tiles(2, 8, 64, 2)
    if num_rows <= 16:
        return Tiles(0, 16, 128, 4)
    return Tiles(0, 32 if num_rows <= 32 else 64, 64, 4)


def choose_num_splits(num_warps: int, num_steps: int, wanted_warps: int) -> int:
    """Chooses how many parts the inputs are cut into, given the warps of one part."""
    return max(1, min(_MAX_SPLITS, num_steps // _MIN_STEPS_PER_SPLIT, -(-wanted_warps // num_warps)))


def gptq_matmul(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, batch_invariant: bool = False
) -> torch.Tensor:
    """Multiplies with a quantised weight.

    Args:
        x: [T, K], contiguous rows.
        weight: [N, K].
        bias: [N] or None.
        batch_invariant: whether tiles and parts must not depend on the number of rows.

    Returns:
        [T, N], dtype of x, or float32 where the weight asks for it.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    if x.shape[0] > MAX_ROWS_OF_TILES and not batch_invariant:
        return _many_rows(x, weight, bias)
    return _few_rows(x, weight, bias, batch_invariant=batch_invariant)


def _result_dtype(x: torch.Tensor, weight: PackedWeight) -> torch.dtype:
    return torch.float32 if weight.wide_results else x.dtype


def _unpacking(x: torch.Tensor, weight: PackedWeight) -> int:
    """Chooses how values are unpacked; Triton's interpreter knows no assembly."""
    if weight.bits != 4 or weight.codes is not None or os.environ.get("TRITON_INTERPRET") == "1":
        return _IN_FLOAT32
    return _UNPACKING.get(x.dtype, _IN_FLOAT32)


def _few_rows(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, batch_invariant: bool
) -> torch.Tensor:
    num_rows, out_features, permutation = x.shape[0], weight.out_features, weight.permutation
    if permutation is not None and num_rows > _MAX_ROWS_TO_GATHER:
        x, permutation = x.index_select(1, permutation), None
    tiles = choose_tiles(16 if batch_invariant else num_rows, out_features, x.dtype)
    num_column_blocks = triton.cdiv(out_features, tiles.columns)
    num_token_blocks = triton.cdiv(num_rows, tiles.tokens)
    num_warps = num_column_blocks * (1 if batch_invariant else num_token_blocks) * tiles.num_warps
    num_steps = triton.cdiv(weight.num_tiles, max(1, tiles.warp_tiles))
    steps_per_split = triton.cdiv(num_steps, choose_num_splits(num_warps, num_steps, tiles.wanted_warps))
    num_splits = triton.cdiv(num_steps, steps_per_split)
    out = torch.empty((num_rows, out_features), dtype=_result_dtype(x, weight), device=x.device)
    partial = torch.empty((num_splits, num_rows, out_features), dtype=torch.float32, device=x.device)
    launch(
        tile_kernel,
        (num_column_blocks, num_splits, num_token_blocks),
        x, weight.words, weight.scales, weight.zeros, weight.offsets, weight.codes, permutation, bias, partial,
        zeros_for_counting(x.device, num_column_blocks * num_token_blocks), out,
        num_rows, weight.in_features, out_features, weight.num_tiles, steps_per_split, x.stride(0),
        **compiled_for(weight), SLICES_PER_SCALE=weight.slices_per_scale,
        SLICES_PER_DOT=1 if x.dtype == torch.float32 else weight.slices_per_scale,
        HAS_PERMUTATION=permutation is not None, HAS_BIAS=bias is not None, UNPACKING=_unpacking(x, weight),
        WARP_TILES=tiles.warp_tiles, BLOCK_TOKENS=tiles.tokens, BLOCK_COLUMNS=tiles.columns,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return out


def _many_rows(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    if weight.permutation is not None:
        x = x.index_select(1, weight.permutation)
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
    num_columns = max(128, _SLICE_BYTES // (weight.in_features * x.element_size()) // 128 * 128)
    for low in range(0, weight.out_features, num_columns):
        part = dequantize(weight, x.dtype, low, min(num_columns, weight.out_features - low))
        columns = slice(low, low + len(part))
        if bias is None:
            torch.mm(x, part.t(), out=out[:, columns])
        else:
            torch.addmm(bias[columns], x, part.t(), out=out[:, columns])
    return out.to(_result_dtype(x, weight))
