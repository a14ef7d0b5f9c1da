"""Runs the kernels for attention: rotates, writes to the cache, and attends, for all sequences of a step."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

import torch

from model.backends.cpu.attention.kernel import KEYS, MAX_HEAD_DIM, TILE_ROWS, AttentionKernel
from model.backends.cpu.attention.module import ATTEND, TILE, module_text, query_factor
from model.backends.cpu.attention.rotary_ir import ROTATE
from model.backends.cpu.attention.rotary_ir import module_text as rotary_text
from model.backends.cpu.jit import Code, compile_functions, has_bf16_products, has_integer_products, has_permutes
from model.backends.cpu.rows.row_kernels import DTYPE_NAMES, NUMBERS_FOR_THREADS
from model.contract.attention_windows import largest_window
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.scheduling.sequence import NO_BLOCK

_ALIGNMENT = 64
_NO_WINDOW = 1 << 62


class AttentionCode(NamedTuple):
    """The compiled kernels for one dtype of activations and one kind of cache.

    Attributes:
        attend: attention over the paged cache, see module.py.
        rotate: rotation and writing to the cache, see rotary_ir.py.
        scratch_bytes: bytes of scratch memory that each thread needs.
        query_dtype: dtype of the rotated queries.
    """

    attend: Code
    rotate: Code
    scratch_bytes: int
    query_dtype: torch.dtype


class StepAttention:
    """Attention of one step, in every layer.

    Args:
        code: the kernels.
        batch: the step.
        cache: keys and values.
        dtype: dtype of activations.
    """

    def __init__(self, code: AttentionCode, batch: ForwardBatch, cache: KVCache, dtype: torch.dtype) -> None:
        data = cache.data
        self._code, self._cache, self._dtype = code, cache, dtype
        self._num_threads = torch.get_num_threads()
        tables, starts = _slot_tables(batch.spans, batch.block_size, largest_window(cache.windows))
        tiles = _tiles(batch.spans, starts)
        scratch = torch.empty(self._num_threads * code.scratch_bytes + _ALIGNMENT, dtype=torch.uint8)
        self._factors = batch.query_scale * query_factor(1.0)
        self._counter = ctypes.c_int64()
        self._tables = (batch.cos, batch.sin, batch.slots)
        self._kept = (tables, tiles, scratch)  # the kernels have their addresses only
        # Bytes from one layer's keys to the next one's, and from keys to values.
        self._layer_bytes, self._value_bytes = (data.stride(i) * data.itemsize for i in (0, 1))
        self._scale_bytes = (0, 0) if cache.scales is None else (cache.scales.stride(0) * 4, cache.scales.stride(1) * 4)
        self._num_tiles = len(tiles) // len(TILE)
        self._fixed = (
            *(tables.data_ptr(), tiles.data_ptr(), self._factors.data_ptr()),
            *(-(-scratch.data_ptr() // _ALIGNMENT) * _ALIGNMENT, ctypes.addressof(self._counter)),
        )

    def attend(self, qkv: torch.Tensor, layer: int) -> torch.Tensor:
        """See `Backend.attention`: [T, (heads + 2 * key heads) * head_dim] to [T, heads * head_dim]."""
        _, _, key_heads, num_slots, dim = self._cache.data.shape
        rows, width = qkv.shape
        heads = width // dim - 2 * key_heads
        query = torch.empty(heads, rows, dim, dtype=self._code.query_dtype)
        out = torch.empty(rows, heads * dim, dtype=self._dtype)
        keys = self._cache.data.data_ptr() + layer * self._layer_bytes
        addresses = [keys, keys + self._value_bytes, 0, 0]
        if self._cache.scales is not None:
            scales = self._cache.scales.data_ptr() + layer * self._scale_bytes[0]
            addresses[2:] = [scales, scales + self._scale_bytes[1]]
        cos, sin, slots = self._tables
        words = (
            *(qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), *addresses, query.data_ptr()),
            *(rows, heads, key_heads, dim, cos.shape[1], qkv.stride(0), num_slots),
        )
        num_threads = self._num_threads if qkv.numel() >= NUMBERS_FOR_THREADS else 1
        self._code.rotate.run(ROTATE, num_threads, *words)
        items = self._num_tiles * heads
        words = (
            *(query.data_ptr(), out.data_ptr(), *addresses, *self._fixed),
            *(items, rows, heads, heads // key_heads, num_slots, self._cache.window_of(layer) or _NO_WINDOW),
        )
        self._counter.value = 0
        self._code.attend.run(ATTEND, min(self._num_threads, items), *words)
        return out


def _slot_tables(
    spans: AbstractSequence[SequenceSpan], block_size: int, window: int | None
) -> tuple[torch.Tensor, list[int]]:
    """The slots of the positions of all sequences, int32, and where each sequence's position 0 is, or would be.

    Each sequence has a few more than the kernel reads or fetches ahead. With a window, positions before the first 64
    keys of which a layer reads some are left out.

    Args:
        spans: the step's sequences.
        block_size: tokens in a block.
        window: the largest window of all layers; None where one reads all positions.
    """
    blocks = array("i")
    starts = []
    passed: list[tuple[int, int]] = []
    for span in spans:
        num_blocks = -(-span.context_len // block_size)
        first = 0 if window is None else max(0, span.start + 1 - window) // KEYS * KEYS // block_size
        starts.append((len(blocks) - first) * block_size)
        if window is not None:
            passed += _passed(span, first, len(blocks) - first, block_size)
        blocks.extend(span.block_table[first:num_blocks])
        padded = (-(-span.context_len // KEYS) + 1) * KEYS
        blocks.extend(span.block_table[num_blocks - 1 : num_blocks] * (-(-padded // block_size) - num_blocks))
    table = torch.frombuffer(blocks, dtype=torch.int32)
    if block_size == 1:
        table = table.clone()
    else:
        table = (table[:, None] * block_size + torch.arange(block_size, dtype=torch.int32)).flatten()
    for place, slot in passed:
        table[place : place + block_size] = slot
    return table, starts


def _passed(span: SequenceSpan, first: int, shift: int, block_size: int) -> list[tuple[int, int]]:
    """Where in a table blocks are that a sequence has given back, and a slot to read in their place, with weight 0."""
    slot = span.block_table[span.start // block_size] * block_size + span.start % block_size
    indices = range(first, span.start // block_size)
    return [((index + shift) * block_size, slot) for index in indices if span.block_table[index] == NO_BLOCK]


def _tiles(spans: AbstractSequence[SequenceSpan], starts: list[int]) -> torch.Tensor:
    """Divides each sequence's rows into tiles of at most `TILE_ROWS`; those with most to do come first."""
    tiles = []
    row = 0
    for span, start in zip(spans, starts, strict=True):
        num_tokens = span.num_tokens
        for first in range(0, num_tokens, TILE_ROWS):
            count = min(TILE_ROWS, num_tokens - first)
            tiles.append((start, row + first, count, span.start + first))
        row += num_tokens
    tiles.sort(key=lambda tile: -(tile[3] + tile[2]) * (8 + tile[2]))
    return torch.tensor(tiles, dtype=torch.int64).flatten()


def attention_code(cache: KVCache, dtype: torch.dtype) -> AttentionCode | None:
    """The kernels for a cache and activations; None where they cannot serve a dtype or a head, or nothing compiles."""
    data = cache.data
    head_dim = data.shape[-1]
    if data.device.type != "cpu" or data.dtype not in DTYPE_NAMES or dtype not in (torch.float32, torch.bfloat16):
        return None
    if head_dim > MAX_HEAD_DIM or head_dim * data.itemsize % 4:
        return None
    return _compile(dtype, data.dtype, head_dim, bool(cache.windows))


@functools.cache
def _compile(
    dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, has_window: bool
) -> AttentionCode | None:
    has_bf16 = has_bf16_products()
    is_bf16 = has_bf16 and dtype == cache_dtype == torch.bfloat16
    query_dtype = torch.bfloat16 if is_bf16 else torch.float32
    names = DTYPE_NAMES[dtype], DTYPE_NAMES[cache_dtype]
    arithmetic = "bf16" if is_bf16 else "int16" if cache_dtype == torch.int8 and has_integer_products() else "float32"
    kernel = AttentionKernel(*names, arithmetic, head_dim, has_bf16, not has_permutes(), has_window)
    attend = compile_functions(module_text(kernel), [ATTEND])
    rotate = compile_functions(rotary_text(*names, DTYPE_NAMES[query_dtype], has_bf16=has_bf16), [ROTATE])
    if attend is None or rotate is None:
        return None
    return AttentionCode(attend, rotate, kernel.scratch["end"], query_dtype)
