"""Runs the decode attention kernel for all sequences of a step that have one new token."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence as AbstractSequence

import torch

from model.backends.cpu.attention_ir import ARGUMENTS, ATTEND, DecodeAttention
from model.backends.cpu.ir_writer import LANES
from model.backends.cpu.jit import Code, compile_functions
from model.execution.forward_batch import SequenceSpan
from model.execution.kv_cache import KVCache

_MAX_HEAD_DIM = 256
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
_INDEX = {name: i for i, name in enumerate(ARGUMENTS)}


class DecodePlan:
    """The sequences of a step that the kernel serves.

    Args:
        code: the kernel.
        spans: of one new token each, at least one.
        rows: of each in the batch.
        cache: keys and values.
        block_size: tokens in a block.
    """

    def __init__(
        self, code: Code, spans: AbstractSequence[SequenceSpan], rows: list[int], cache: KVCache, block_size: int
    ) -> None:
        data = cache.data
        _, _, num_heads, num_slots, head_dim = data.shape
        lengths = [span.context_len for span in spans]
        width = max(-(-length // block_size) for length in lengths)
        tables = torch.zeros(len(spans), width, dtype=torch.int32)
        for i, (span, length) in enumerate(zip(spans, lengths, strict=True)):
            table = span.block_table[: -(-length // block_size)]
            tables[i, : len(table)] = torch.tensor(table, dtype=torch.int32)
        self._num_threads = torch.get_num_threads()
        scratch_width = (max(lengths) // LANES + 2) * LANES
        scratch = torch.empty(self._num_threads, scratch_width)
        per_sequence = torch.tensor([lengths, rows], dtype=torch.int64)
        self._counter = torch.zeros(1, dtype=torch.int64)
        self._kept = (tables, per_sequence, scratch)  # the kernel has their addresses only
        self._code = code
        self._cache = cache
        values = {
            "tables": tables.data_ptr(),
            "lengths": per_sequence[0].data_ptr(),
            "rows": per_sequence[1].data_ptr(),
            "scratch": scratch.data_ptr(),
            "next": self._counter.data_ptr(),
            "items": len(spans) * num_heads,
            "heads": num_heads,
            "slots": num_slots,
            "table_width": width,
            "block_size": block_size,
            "scratch_width": scratch_width,
            "out_stride": num_heads * head_dim,
        }
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))(*(values.get(name, 0) for name in ARGUMENTS))
        # Bytes from one layer's keys to the next one's, and from keys to values.
        self._layer_bytes, self._value_bytes = (data.stride(i) * data.itemsize for i in (0, 1))
        self._scale_bytes = (0, 0) if cache.scales is None else (cache.scales.stride(0) * 4, cache.scales.stride(1) * 4)

    def attend(self, query: torch.Tensor, layer: int, out: torch.Tensor) -> None:
        """Writes the rows of the plan's sequences.

        Args:
            query: [T, num_heads, head_dim] float32, scaled; the last two dimensions contiguous.
            layer: whose cache.
            out: [T, num_heads, head_dim] float32, contiguous.
        """
        arguments = self._arguments
        keys = self._cache.data.data_ptr() + layer * self._layer_bytes
        arguments[0:4] = [query.data_ptr(), out.data_ptr(), keys, keys + self._value_bytes]
        if self._cache.scales is not None:
            scales = self._cache.scales.data_ptr() + layer * self._scale_bytes[0]
            arguments[4:6] = [scales, scales + self._scale_bytes[1]]
        arguments[_INDEX["query_stride"]] = query.stride(0)
        self._counter.zero_()
        self._code.parallel(self._code.addresses[ATTEND], ctypes.addressof(arguments), self._num_threads, 0)


def decode_attention_code(cache: KVCache) -> Code | None:
    """The kernel for a cache, or None where it cannot serve: another device, type or head, no compiler."""
    data = cache.data
    head_dim = data.shape[-1]
    if data.device.type != "cpu" or data.dtype not in _DTYPES or head_dim % LANES or head_dim > _MAX_HEAD_DIM:
        return None
    return _compile(_DTYPES[data.dtype], head_dim)


@functools.cache
def _compile(cache_dtype: str, head_dim: int) -> Code | None:
    return compile_functions(DecodeAttention(cache_dtype, head_dim).text, [ATTEND])
