"""A call of each kernel as it is in service, with the bytes or operations that bound it; to be timed by the doctor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from model.backends.base import GPTQTensors
from model.backends.cuda.gptq_layout import pack
from model.backends.cuda.kernels.attention.decode_attention import DecodeRows, choose_num_splits
from model.backends.cuda.kernels.attention.prefill_attention import PrefillTiles, choose_block_rows, tile_records
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters
from model.backends.cuda.operations import Operation
from model.backends.cuda.self_check.trials import KernelShape


class Workload(NamedTuple):
    """A call, and what it must move or compute at least."""

    run: Callable[[], Any]
    num_bytes: int
    num_flops: int = 0


class Sizes(NamedTuple):
    """How large the calls are.

    Attributes:
        num_tokens: of a prefill.
        num_seqs: of a decode.
        context: keys of each.
        inner_size: outputs of w1.
        vocab_size: of the logits.
    """

    num_tokens: int
    num_seqs: int
    context: int
    inner_size: int
    vocab_size: int


def workload(name: str, kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload | None:
    """The call of a kernel; None for one that is too small for its time to mean anything."""
    make = _MAKERS.get(name)
    return None if make is None else make(kernel, shape, sizes)


def _normal(shape: KernelShape, *size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.randn(*size, device=shape.device).to(dtype or shape.dtype)


def _rms_norm(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    size = (sizes.num_tokens, shape.hidden_size)
    delta, residual, weight = _normal(shape, *size), _normal(shape, *size, dtype=torch.float32), _normal(shape, size[1])
    return Workload(lambda: kernel(delta, weight, 1e-6, residual), 2 * (delta.nbytes + residual.nbytes))


def _silu_mul(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    gate, up = (_normal(shape, sizes.num_tokens, sizes.inner_size) for _ in range(2))
    return Workload(lambda: kernel(gate, up), 3 * gate.nbytes)


def _cache(shape: KernelShape, num_slots: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    size = (2, shape.num_heads, num_slots, shape.head_dim)
    if shape.cache_dtype == torch.int8:
        data = torch.randint(-127, 128, size, dtype=torch.int8, device=shape.device)
        return data, torch.rand(size[:3], device=shape.device)
    return _normal(shape, *size, dtype=shape.cache_dtype), None


def _slot_bytes(shape: KernelShape) -> int:
    """Of one token's key and value."""
    scale_bytes = 4 if shape.cache_dtype == torch.int8 else 0
    return 2 * shape.num_heads * (shape.head_dim * shape.cache_dtype.itemsize + scale_bytes)


def _rotate_and_cache(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    num_tokens = sizes.num_tokens
    data, scales = _cache(shape, num_tokens)
    qkv = _normal(shape, num_tokens, 3 * shape.num_heads * shape.head_dim)
    cos, sin = (torch.rand(num_tokens, shape.rotary_dim // 2, device=shape.device) for _ in range(2))
    scale, slots = torch.rand(num_tokens, device=shape.device), torch.randperm(num_tokens, device=shape.device)
    num_bytes = qkv.nbytes + qkv.nbytes // 3 + num_tokens * _slot_bytes(shape)
    return Workload(lambda: kernel(qkv, cos, sin, scale, slots, data, scales), num_bytes)


def _blocks(shape: KernelShape, num_tokens: int) -> torch.Tensor:
    return torch.randperm(-(-num_tokens // shape.block_size), device=shape.device).to(torch.int32)


def _decode_attention(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    num_seqs = sizes.num_seqs
    blocks_of_each = -(-sizes.context // shape.block_size)
    num_slots = num_seqs * blocks_of_each * shape.block_size
    data, scales = _cache(shape, num_slots)
    rows = torch.arange(num_seqs, dtype=torch.int32, device=shape.device)
    decodes = DecodeRows(
        rows, torch.full_like(rows, sizes.context), rows * blocks_of_each, _blocks(shape, num_slots)
    )
    query = _normal(shape, num_seqs, shape.num_heads, shape.head_dim) / shape.head_dim**0.5
    out = torch.empty_like(query)
    num_splits = choose_num_splits(num_seqs, shape.num_heads, sizes.context)

    def run() -> None:
        kernel(query, data, scales, decodes, out, block_size=shape.block_size, num_splits=num_splits)

    return Workload(run, num_seqs * sizes.context * _slot_bytes(shape))


def _prefill_attention(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    num_tokens = sizes.num_tokens
    num_slots = -(-num_tokens // shape.block_size) * shape.block_size
    data, scales = _cache(shape, num_slots)
    block_rows = choose_block_rows(shape.dtype, num_tokens)
    records = torch.tensor(tile_records([(0, 0, num_tokens, 0)], block_rows), dtype=torch.int32, device=shape.device)
    tiles = PrefillTiles(records, _blocks(shape, num_slots), block_rows)
    query = _normal(shape, num_tokens, shape.num_heads, shape.head_dim) / shape.head_dim**0.5
    out = torch.empty_like(query)
    num_flops = 2 * shape.num_heads * shape.head_dim * num_tokens * num_tokens  # two products, half of it masked
    return Workload(
        lambda: kernel(query, data, scales, tiles, out, block_size=shape.block_size),
        num_tokens * _slot_bytes(shape) + 2 * query.nbytes,
        num_flops,
    )


def _sample_rows(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    """The default path: top_p 0.8. The logits are read once at least, weighed and written once."""
    logits = _normal(shape, sizes.num_seqs, sizes.vocab_size, dtype=torch.float32)
    column = torch.ones(sizes.num_seqs, device=shape.device)
    filters = RowFilters(column, column.int() * 0, column * 0.8, column * 0, column / 2)
    return Workload(lambda: kernel(logits, filters), 2 * logits.nbytes)


def _row_matmul(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    weight = _normal(shape, 2 * sizes.inner_size, shape.hidden_size)
    x = _normal(shape, 1, shape.hidden_size)
    return Workload(lambda: kernel(x, weight, None, None), weight.nbytes)


def _add_low_rank(kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    rank, num_slots = 64, 8
    out, x = (_normal(shape, sizes.num_seqs, n) for n in (sizes.inner_size, shape.hidden_size))
    a, b = _normal(shape, num_slots, rank, shape.hidden_size), _normal(shape, num_slots, sizes.inner_size, rank)
    slots = torch.arange(sizes.num_seqs, dtype=torch.int32, device=shape.device) % num_slots
    return Workload(lambda: kernel(out, x, slots, a, b), a.nbytes + b.nbytes)


def _gptq(num_rows: int, kernel: Operation, shape: KernelShape, sizes: Sizes) -> Workload:
    bits = shape.bits or 4
    num_inputs = shape.hidden_size
    group_size = num_inputs if shape.group_size == -1 else shape.group_size
    num_groups = -(-num_inputs // group_size)
    num_outputs = sizes.inner_size // 8 * 8
    per_word = 32 // bits
    limit = (1 << 31) - 1
    size = (num_inputs // per_word, num_outputs)
    qweight = torch.randint(-limit, limit, size, dtype=torch.int32, device=shape.device)
    middle = (1 << (bits - 1)) - 1
    word = sum(middle << (bits * place) for place in range(per_word))
    qzeros = torch.full((num_groups, num_outputs // per_word), word, dtype=torch.int32, device=shape.device)
    scales = torch.rand(num_groups, num_outputs, device=shape.device).half()
    groups = torch.arange(num_inputs, device=shape.device) // group_size
    weight = pack(GPTQTensors(qweight, qzeros, scales, groups, bits))
    assert weight is not None
    x = _normal(shape, num_rows, num_inputs)
    num_flops = 2 * num_rows * num_inputs * num_outputs if num_rows > 128 else 0
    return Workload(lambda: kernel(x, weight, None), weight.nbytes + x.nbytes * 2, num_flops)


_MAKERS: dict[str, Callable[[Operation, KernelShape, Sizes], Workload]] = {
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
