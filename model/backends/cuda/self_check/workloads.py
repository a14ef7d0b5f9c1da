"""Calls of kernels in sizes of service, with the bytes or operations that bound them, for the doctor to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from model.backends.cuda.kernels.attention.decode_attention import DecodeRows, choose_num_splits
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters
from model.backends.cuda.operations import Operation
from model.backends.cuda.self_check.inputs import Draw, DrawnCache, KernelShape, drawn_gptq_weight


class Workload(NamedTuple):
    """A call, and the least bytes and operations that it takes."""

    run: Callable[[], Any]
    num_bytes: int
    num_flops: int = 0


class Sizes(NamedTuple):
    """Sizes of the calls.

    Attributes:
        num_tokens: tokens of a prefill.
        num_seqs: sequences of a decode.
        context: keys of each.
        inner_size: outputs of w1.
        vocab_size: columns of the logits.
    """

    num_tokens: int
    num_seqs: int
    context: int
    inner_size: int
    vocab_size: int


def workload(name: str, kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload | None:
    """Makes the call of a kernel; None for one that is too small for its time to mean anything."""
    make = _MAKERS.get(name)
    return None if make is None else make(kernel, shape, sizes, Draw(shape, 0, on_device=True))


def _rms_norm(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    size = (sizes.num_tokens, shape.hidden_size)
    delta, residual = draw.normal(*size, dtype=shape.dtype), draw.normal(*size)
    weight = draw.normal(shape.hidden_size, dtype=shape.dtype)
    return Workload(lambda: kernel(delta, weight, 1e-6, residual), 2 * (delta.nbytes + residual.nbytes))


def _silu_mul(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    gate, up = (draw.normal(sizes.num_tokens, sizes.inner_size, dtype=shape.dtype) for _ in range(2))
    return Workload(lambda: kernel(gate, up), 3 * gate.nbytes)


def _slot_bytes(shape: KernelShape) -> int:
    """Bytes of one token's key and value."""
    scale_bytes = 4 if shape.cache_dtype == torch.int8 else 0
    return 2 * shape.num_heads * (shape.head_dim * shape.cache_dtype.itemsize + scale_bytes)


def _rotate_and_cache(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    num_tokens = sizes.num_tokens
    data, scales = DrawnCache.drawn(draw, shape, num_tokens)
    qkv = draw.normal(num_tokens, 3 * shape.num_heads * shape.head_dim, dtype=shape.dtype)
    cos, sin = (draw.normal(num_tokens, shape.rotary_dim // 2) for _ in range(2))
    scale, slots = draw.normal(num_tokens), draw.permutation(num_tokens)
    num_bytes = qkv.nbytes + qkv.nbytes // 3 + num_tokens * _slot_bytes(shape)
    return Workload(lambda: kernel(qkv, cos, sin, scale, slots, data, scales), num_bytes)


def _query(shape: KernelShape, num_rows: int, draw: Draw) -> torch.Tensor:
    return draw.normal(num_rows, shape.num_heads, shape.head_dim, dtype=shape.dtype).div_(shape.head_dim**0.5)


def _decode_attention(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    num_seqs = sizes.num_seqs
    blocks_of_each = -(-sizes.context // shape.block_size)
    num_blocks = num_seqs * blocks_of_each
    data, scales = DrawnCache.drawn(draw, shape, num_blocks * shape.block_size)
    rows = torch.arange(num_seqs, dtype=torch.int32, device=shape.device)
    table = draw.permutation(num_blocks).to(torch.int32)
    decodes = DecodeRows(rows, torch.full_like(rows, sizes.context), rows * blocks_of_each, table)
    query = _query(shape, num_seqs, draw)
    out = torch.empty_like(query)
    num_splits = choose_num_splits(num_seqs, shape.num_heads, sizes.context)
    return Workload(
        lambda: kernel(query, data, scales, decodes, out, block_size=shape.block_size, num_splits=num_splits),
        num_seqs * sizes.context * _slot_bytes(shape),
    )


def _prefill_attention(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    num_tokens = sizes.num_tokens
    num_blocks = -(-num_tokens // shape.block_size)
    data, scales = DrawnCache.drawn(draw, shape, num_blocks * shape.block_size)
    block_rows = choose_block_rows(shape.dtype, num_tokens)
    records = torch.tensor(tile_records([(0, 0, num_tokens, 0)], block_rows), dtype=torch.int32, device=shape.device)
    tiles = PrefillTiles(records, draw.permutation(num_blocks).to(torch.int32), block_rows)
    query = _query(shape, num_tokens, draw)
    out = torch.empty_like(query)
    num_flops = 2 * shape.num_heads * shape.head_dim * num_tokens * num_tokens  # two products, half of it masked
    return Workload(
        lambda: kernel(query, data, scales, tiles, out, block_size=shape.block_size),
        num_tokens * _slot_bytes(shape) + 2 * query.nbytes,
        num_flops,
    )


def _sample_rows(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    """The default path: top_p 0.8. The logits are read once at least, weighed and written once."""
    logits = draw.normal(sizes.num_seqs, sizes.vocab_size)
    column = torch.ones(sizes.num_seqs, device=shape.device)
    filters = RowFilters(column, column.int() * 0, column * 0.8, column * 0, column / 2)
    return Workload(lambda: kernel(logits, filters), 2 * logits.nbytes)


def _row_matmul(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    weight = draw.normal(2 * sizes.inner_size, shape.hidden_size, dtype=shape.dtype)
    x = draw.normal(1, shape.hidden_size, dtype=shape.dtype)
    return Workload(lambda: kernel(x, weight, None, None), weight.nbytes)


def _add_low_rank(kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    rank, num_slots, dtype = 64, 8, shape.dtype
    out, x = (draw.normal(sizes.num_seqs, n, dtype=dtype) for n in (sizes.inner_size, shape.hidden_size))
    a = draw.normal(num_slots, rank, shape.hidden_size, dtype=dtype)
    b = draw.normal(num_slots, sizes.inner_size, rank, dtype=dtype)
    slots = torch.arange(sizes.num_seqs, dtype=torch.int32, device=shape.device) % num_slots
    return Workload(lambda: kernel(out, x, slots, a, b), a.nbytes + b.nbytes)


def _gptq(num_rows: int, kernel: Operation, shape: KernelShape, sizes: Sizes, draw: Draw) -> Workload:
    num_inputs, num_outputs = shape.hidden_size, sizes.inner_size // 8 * 8
    weight = drawn_gptq_weight(draw, shape, num_inputs, num_outputs)
    x = draw.normal(num_rows, num_inputs, dtype=shape.dtype)
    num_flops = 2 * num_rows * num_inputs * num_outputs if num_rows > 128 else 0
    return Workload(lambda: kernel(x, weight, None), weight.nbytes + x.nbytes * 2, num_flops)


_MAKERS: dict[str, Callable[[Operation, KernelShape, Sizes, Draw], Workload]] = {
    "rms_norm": _rms_norm,
    "silu_mul": _silu_mul,
    "add_low_rank": _add_low_rank,
    "rotate_and_cache": _rotate_and_cache,
    "decode_attention": _decode_attention,
    "prefill_attention": _prefill_attention,
    "sample_rows": _sample_rows,
    "row_matmul": _row_matmul,
    "tile_matmul": _row_matmul,
    "gptq_one_row": lambda *rest: _gptq(1, *rest),
    "gptq_few_rows": lambda *rest: _gptq(16, *rest),
    "gptq_many_rows": lambda *rest: _gptq(512, *rest),
}
