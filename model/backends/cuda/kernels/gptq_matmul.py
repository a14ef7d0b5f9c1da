"""Products with 4- and 8-bit weights and 16- or 32-bit activations.

Three ways, by the number of rows:
- one row: plain float32 arithmetic on vectors. Integers become floats by writing their bits into a mantissa, so a
  weight costs one logical operation and two multiply-adds: a conversion each would take longer than the memory does.
- a few rows: tiles are unpacked to the activations' dtype as integers (exact), multiplied on tensor cores, and scaled
  in float32 once a group; less is rounded than in a dequantised weight.
- many rows: slices of the weight are dequantised into a buffer that stays in the L2 cache, for cuBLAS to multiply.
The first two split the inputs over programs, and a second kernel adds the parts in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from model.backends.cuda.gptq_layout import ROWS, PackedWeight
from model.backends.cuda.kernels.gptq_dequantize import dequantize
from model.backends.cuda.kernels.gptq_kernels import one_row_kernel, sum_splits_kernel, tile_kernel
from model.backends.cuda.kernels.launch import launch, next_power_of_2, zeros_for_counting

# From here on a product is bound by arithmetic, and cuBLAS's is worth a pass over the weight.
MAX_ROWS_OF_TILES = 128

# What is dequantised at a time: a fraction of an H200's 50 MB of L2.
_SLICE_BYTES = 24 << 20

_TARGET_PROGRAMS = 1056
_MAX_SPLITS = 16

_ONE_ROW_COLUMNS = 128


def choose_num_splits(num_programs: int, num_tiles: int) -> int:
    """How many parts the inputs are cut into, given the programs there are without."""
    return max(1, min(_MAX_SPLITS, num_tiles // 2, -(-_TARGET_PROGRAMS // num_programs)))


def gptq_matmul(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, is_fixed: bool = False
) -> torch.Tensor:
    """Multiplies with a quantised weight.

    Args:
        x: [T, K], contiguous rows.
        weight: [N, K].
        bias: [N] or None.
        is_fixed: whether tiles and parts must not depend on the number of rows.

    Returns:
        [T, N], dtype of x, or float32 where the weight asks for it.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    if is_fixed:
        return _few_rows(x, weight, bias, is_fixed=True)
    if x.shape[0] > MAX_ROWS_OF_TILES:
        return _many_rows(x, weight, bias)
    if x.shape[0] == 1:
        return _one_row(x, weight, bias)
    return _few_rows(x, weight, bias)


def _constants(weight: PackedWeight) -> dict[str, Any]:
    return {
        "BITS": weight.bits,
        "GROUP_SIZE": weight.group_size,
        "SLICES_PER_SCALE": weight.slices_per_scale,
        "HAS_ZEROS": weight.zeros is not None,
        "HAS_OFFSETS": weight.offsets is not None,
        "HAS_CODES": weight.codes is not None,
        "HAS_PERMUTATION": weight.permutation is not None,
        "ROWS": ROWS,
    }


def _result_dtype(x: torch.Tensor, weight: PackedWeight) -> torch.dtype:
    return torch.float32 if weight.wide_results else x.dtype


def _split(num_programs: int, num_tiles: int) -> tuple[int, int]:
    """Into how many parts the inputs are cut, and tiles of each."""
    tiles_per_split = triton.cdiv(num_tiles, choose_num_splits(num_programs, num_tiles))
    return triton.cdiv(num_tiles, tiles_per_split), tiles_per_split


def _one_row(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    out_features, num_tiles = weight.out_features, weight.num_tiles
    num_column_blocks = triton.cdiv(out_features, _ONE_ROW_COLUMNS)
    num_splits, tiles_per_split = _split(num_column_blocks, num_tiles)
    out = torch.empty((1, out_features), dtype=_result_dtype(x, weight), device=x.device)
    partial = torch.empty((num_splits, out_features), dtype=torch.float32, device=x.device)
    launch(
        one_row_kernel,
        (num_column_blocks, num_splits),
        x,
        weight.words,
        weight.scales,
        weight.zeros,
        weight.offsets,
        weight.codes,
        weight.permutation,
        bias,
        partial,
        zeros_for_counting(x.device, num_column_blocks),
        out,
        weight.in_features,
        out_features,
        num_tiles,
        tiles_per_split,
        HAS_BIAS=bias is not None,
        BLOCK_COLUMNS=_ONE_ROW_COLUMNS,
        **_constants(weight),
        num_warps=4,
    )
    return out


def _few_rows(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, *, is_fixed: bool = False
) -> torch.Tensor:
    num_rows = x.shape[0]
    out_features, num_tiles = weight.out_features, weight.num_tiles
    block_tokens = 16 if is_fixed else max(16, min(64, next_power_of_2(num_rows)))
    # The wider tile is faster where its registers suffice, which small groups and a permutation use up.
    is_wide = block_tokens > 16 and weight.group_size >= 128 and weight.permutation is None
    block_columns = 128 if is_wide else 64
    num_column_blocks = triton.cdiv(out_features, block_columns)
    num_token_blocks = triton.cdiv(num_rows, block_tokens)
    num_splits, tiles_per_split = _split(num_column_blocks * (1 if is_fixed else num_token_blocks), num_tiles)
    partial = torch.empty((num_splits, num_rows, out_features), dtype=torch.float32, device=x.device)
    launch(
        tile_kernel,
        (num_column_blocks, num_splits, num_token_blocks),
        x,
        weight.words,
        weight.scales,
        weight.zeros,
        weight.offsets,
        weight.codes,
        weight.permutation,
        partial,
        num_rows,
        weight.in_features,
        out_features,
        num_tiles,
        tiles_per_split,
        x.stride(0),
        BLOCK_TOKENS=block_tokens,
        BLOCK_COLUMNS=block_columns,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        **_constants(weight),
        num_warps=4,
        num_stages=3,
    )
    out = torch.empty((num_rows, out_features), dtype=_result_dtype(x, weight), device=x.device)
    launch(
        sum_splits_kernel,
        (triton.cdiv(out.numel(), 512),),
        partial,
        bias,
        out,
        out.numel(),
        out_features,
        NUM_SPLITS=num_splits,
        HAS_BIAS=bias is not None,
        BLOCK=512,
        num_warps=2,
    )
    return out


def _many_rows(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    if weight.permutation is not None:
        x = x.index_select(1, weight.permutation)
    out = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype, device=x.device)
    num_columns = max(128, _SLICE_BYTES // (weight.in_features * x.element_size()) // 128 * 128)
    for low in range(0, weight.out_features, num_columns):
        part = dequantize(weight, x.dtype, low, min(num_columns, weight.out_features - low))
        columns = slice(low, low + part.shape[1])
        if bias is None:
            torch.mm(x, part, out=out[:, columns])
        else:
            torch.addmm(bias[columns], x, part, out=out[:, columns])
    return out.to(_result_dtype(x, weight))
