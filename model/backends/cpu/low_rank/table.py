"""The low-rank factors of adapters on a CPU, packed, and the kernel that runs them."""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.adapters.low_rank import LowRankUpdate, fold
from model.backends.cpu.jit import Code, compile_functions, has_bf16_products
from model.backends.cpu.linears.packing import aligned_empty
from model.backends.cpu.low_rank.kernel_ir import (
    ADAPT,
    ARGUMENTS,
    ENTRY_WORDS,
    MAX_PARTS,
    OUTPUTS,
    PARTIAL_SUMS,
    RANKS,
    LowRankKernel,
)
from model.backends.huge_pages import use_huge_pages
from model.backends.torch_low_rank import AdapterRows, in_dtype

_X, _OUT, _HIDDEN, _ROWS, _SEGMENTS, _ENTRIES = range(6)
_NUM_SEGMENTS, _X_STRIDE, _OUT_STRIDE, _NUM_INPUTS, _HIDDEN_STRIDE, _PART_STRIDE = range(6, len(ARGUMENTS))


@functools.cache
def _code(is_bf16: bool) -> Code | None:
    return compile_functions(LowRankKernel(is_bf16).text, [ADAPT])


class _Packed(NamedTuple):
    """An adapter's factors for one layer.

    Attributes:
        entry: what the kernel is told, see `kernel_ir`.
        max_rank: of its parts, padded.
        tensors: that the entry has the addresses of.
    """

    entry: list[int]
    max_rank: int
    tensors: list[torch.Tensor]


class PackedLowRankTable:
    """Implements `LowRankTable` by the kernel.

    Args:
        code: compiled.
        num_inputs: of the layer; rows are filled up with zeros to what the kernel takes.
        num_outputs: of the layer, likewise.
        num_slots: how many adapters there may be.
        dtype: of the activations.
        computed_dtype: of the factors: bfloat16 or float32.
    """

    def __init__(
        self,
        code: Code,
        num_inputs: int,
        num_outputs: int,
        num_slots: int,
        dtype: torch.dtype,
        computed_dtype: torch.dtype,
    ) -> None:
        self._code = code
        self._num_inputs = num_inputs
        self._num_outputs = num_outputs
        self._missing = (-num_inputs % (2 * PARTIAL_SUMS), -num_outputs % OUTPUTS)
        self._dtype = dtype
        self._computed_dtype = computed_dtype
        self._entries = (ctypes.c_int64 * (num_slots * ENTRY_WORDS))()
        self._packed: list[_Packed | None] = [None] * num_slots
        self._num_packed = 0
        self._max_rank = RANKS
        self._arguments = (ctypes.c_int64 * len(ARGUMENTS))()
        self._arguments[_ENTRIES] = ctypes.addressof(self._entries)
        self._arguments[_NUM_INPUTS] = num_inputs + self._missing[0]

    def prepare(self, updates: AbstractSequence[LowRankUpdate]) -> tuple[_Packed, int]:
        """See `LowRankTable`."""
        if any(update.first_output % OUTPUTS or len(update.b) % OUTPUTS for update in updates):
            # Blocks of two parts would overlap, and two threads add to the same outputs.
            updates = [LowRankUpdate(0, *fold(updates, self._num_outputs), 1.0)]
        entry, tensors, max_rank = [len(updates)], [], 0
        for update in updates:
            a, b = update.a.float(), update.scaled_b()
            in_dtype(b, self._dtype)  # what float16 cannot hold is refused, though it is not what is computed in
            rank = -(-len(a) // RANKS) * RANKS
            a = F.pad(a, (0, self._missing[0], 0, rank - len(a)))
            b = F.pad(b, (0, rank - b.shape[1], 0, -len(b) % OUTPUTS))
            packed_a = _pack(a, self._computed_dtype, RANKS)
            packed_b = _pack(b, self._computed_dtype, OUTPUTS)
            entry += [packed_a.data_ptr(), packed_b.data_ptr(), rank // RANKS]
            entry += [update.first_output, len(b) // OUTPUTS]
            tensors += [packed_a, packed_b]
            max_rank = max(max_rank, rank)
        entry += [0] * (ENTRY_WORDS - len(entry))
        return _Packed(entry, max_rank, tensors), sum(tensor.nbytes for tensor in tensors)

    def put(self, slot: int, prepared: _Packed | None) -> None:
        """See `LowRankTable`."""
        for word, value in enumerate([0] * ENTRY_WORDS if prepared is None else prepared.entry):
            self._entries[slot * ENTRY_WORDS + word] = value
        self._packed[slot] = prepared
        self._num_packed = sum(packed is not None for packed in self._packed)
        self._max_rank = max((packed.max_rank for packed in self._packed if packed is not None), default=RANKS)

    def add(self, out: torch.Tensor, x: torch.Tensor, plan: AdapterRows) -> torch.Tensor:
        """See `LowRankTable`."""
        if not self._num_packed:
            return out
        x, own = x.to(self._computed_dtype), out.to(self._computed_dtype)
        if any(self._missing):
            x, own = F.pad(x, (0, self._missing[0])), F.pad(own, (0, self._missing[1]))
        x = x if x.stride(-1) == 1 else x.contiguous()
        own = own if own.stride(-1) == 1 else own.contiguous()
        num_rows = len(plan.rows)
        hidden = torch.empty(MAX_PARTS * num_rows * self._max_rank)
        arguments = self._arguments
        arguments[_X], arguments[_OUT], arguments[_HIDDEN] = x.data_ptr(), own.data_ptr(), hidden.data_ptr()
        arguments[_ROWS], arguments[_SEGMENTS] = plan.rows.data_ptr(), plan.segments.data_ptr()
        arguments[_NUM_SEGMENTS] = len(plan.segments)
        arguments[_X_STRIDE], arguments[_OUT_STRIDE] = x.stride(0), own.stride(0)
        arguments[_HIDDEN_STRIDE], arguments[_PART_STRIDE] = self._max_rank, num_rows * self._max_rank
        address = ctypes.addressof(arguments)
        self._code.parallel(self._code.addresses[ADAPT], address, torch.get_num_threads(), 0)
        return own[:, : self._num_outputs].to(self._dtype)


def make_packed_table(
    num_inputs: int, num_outputs: int, num_slots: int, dtype: torch.dtype
) -> PackedLowRankTable | None:
    """Makes a table for the kernel, or returns None where there is no compiler."""
    is_bf16 = dtype == torch.bfloat16 and has_bf16_products()
    code = _code(is_bf16)
    if code is None:
        return None
    computed_dtype = torch.bfloat16 if is_bf16 else torch.float32
    return PackedLowRankTable(code, num_inputs, num_outputs, num_slots, dtype, computed_dtype)


def _pack(factor: torch.Tensor, dtype: torch.dtype, height: int) -> torch.Tensor:
    """Lays a factor [N, K] out in blocks of `height` rows, 16 rows of an input side by side (of a pair in bfloat16)."""
    num_rows, num_columns = factor.shape
    per_word = 2 if dtype == torch.bfloat16 else 1
    shape = (num_rows // height, num_columns // per_word, height // 16, 64)
    out = _arena.take(math.prod(shape)).view(shape)
    words = factor.to(dtype).contiguous().view(torch.int32).view(num_rows // height, height // 16, 16, -1)
    out.view(torch.int32).view(num_rows // height, num_columns // per_word, height // 16, 16).copy_(
        words.permute(0, 3, 1, 2)
    )
    return out


class _Arena(threading.local):
    """Memory in huge pages for factors, which are too small to have their own: a third of the time goes without them.

    A piece is given back when the last tensor in it goes; an adapter's are laid out one after another.
    """

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """Returns so many bytes, a multiple of 64, aligned to 64."""
        if self._used + num_bytes > len(self._piece):
            self._piece = aligned_empty(max(num_bytes, _PIECE_BYTES))
            self._used = 0
            use_huge_pages(self._piece.data_ptr(), len(self._piece))
        self._used += num_bytes
        return self._piece[self._used - num_bytes : self._used]


_PIECE_BYTES = 32 << 20
_arena = _Arena()
