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
from model.backends.cpu.linears.packing import aligned_empty, pack_floats
from model.backends.cpu.low_rank.adapt_ir import ADAPT, ENTRY_WORDS, MAX_PARTS, module_text
from model.backends.cpu.low_rank.few_rows_ir import OUTPUTS, PARTIAL_SUMS, RANKS
from model.backends.huge_pages import use_huge_pages
from model.backends.torch_low_rank import AdapterRows, in_dtype

# Of huge pages, that factors of many layers share.
_PIECE_BYTES = 32 << 20


@functools.cache
def _code(is_bf16: bool) -> Code | None:
    return compile_functions(module_text(is_bf16=is_bf16), [ADAPT])


class _Packed(NamedTuple):
    """An adapter's factors for one layer.

    Attributes:
        entry: `ENTRY_WORDS` numbers that tell the kernel where the factors are; see adapt_ir.py.
        max_rank: the largest rank of its parts, padded to whole blocks.
        tensors: the factors; the entry has their addresses only.
    """

    entry: list[int]
    max_rank: int
    tensors: list[torch.Tensor]


class PackedLowRankTable:
    """Implements `LowRankTable` by the kernel.

    Args:
        code: the compiled kernel.
        num_inputs: K; rows are filled up with zeros to what the kernel takes.
        num_outputs: N, likewise.
        num_slots: how many adapters there may be.
        dtype: dtype of the activations.
        computed_dtype: dtype of the factors: bfloat16 or float32.
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
        self._num_outputs = num_outputs
        self._missing = (-num_inputs % (2 * PARTIAL_SUMS), -num_outputs % OUTPUTS)
        self._dtype = dtype
        self._computed_dtype = computed_dtype
        self._entries = (ctypes.c_int64 * (num_slots * ENTRY_WORDS))()
        self._packed: dict[int, _Packed] = {}  # by slot
        self._max_rank = RANKS

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
            packed_a = pack_floats(a.to(self._computed_dtype), RANKS, _arena.take)
            packed_b = pack_floats(b.to(self._computed_dtype), OUTPUTS, _arena.take)
            entry += [packed_a.data_ptr(), packed_b.data_ptr(), rank // RANKS]
            entry += [update.first_output, len(b) // OUTPUTS]
            tensors += [packed_a, packed_b]
            max_rank = max(max_rank, rank)
        entry += [0] * (ENTRY_WORDS - len(entry))
        return _Packed(entry, max_rank, tensors), sum(tensor.nbytes for tensor in tensors)

    def put(self, slot: int, prepared: _Packed | None) -> None:
        """See `LowRankTable`."""
        first = slot * ENTRY_WORDS
        if prepared is None:
            self._entries[first] = 0  # no parts
            self._packed.pop(slot, None)
        else:
            for word, value in enumerate(prepared.entry):
                self._entries[first + word] = value
            self._packed[slot] = prepared
        self._max_rank = max((packed.max_rank for packed in self._packed.values()), default=RANKS)

    def add(self, out: torch.Tensor, x: torch.Tensor, plan: AdapterRows) -> torch.Tensor:
        """See `LowRankTable`."""
        if not self._packed:
            return out
        x, own = x.to(self._computed_dtype), out.to(self._computed_dtype)
        if any(self._missing):
            x, own = F.pad(x, (0, self._missing[0])), F.pad(own, (0, self._missing[1]))
        x = x if x.stride(-1) == 1 else x.contiguous()
        own = own if own.stride(-1) == 1 else own.contiguous()
        num_rows = len(plan.rows)
        hidden = torch.empty(MAX_PARTS * num_rows * self._max_rank)
        self._code.run(
            ADAPT,
            torch.get_num_threads(),
            *(tensor.data_ptr() for tensor in (x, own, hidden, plan.rows, plan.segments)),
            *(ctypes.addressof(self._entries), len(plan.segments), x.stride(0), own.stride(0), x.shape[1]),
            *(self._max_rank, num_rows * self._max_rank),
        )
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


class _Arena(threading.local):
    """Memory in huge pages for factors, which are too small to have their own: a third of the time goes without them.

    A piece is given back when the last tensor in it goes; an adapter's are laid out one after another.
    """

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, *shape: int) -> torch.Tensor:
        """Returns uint8 memory of a shape, of a multiple of 64 bytes, aligned to 64."""
        num_bytes = math.prod(shape)
        if self._used + num_bytes > len(self._piece):
            with torch.inference_mode(False):  # later factors may come from outside of it
                self._piece = aligned_empty(max(num_bytes, _PIECE_BYTES))
            self._used = 0
            use_huge_pages(self._piece.data_ptr(), len(self._piece))
        self._used += num_bytes
        return self._piece[self._used - num_bytes : self._used].view(shape)


_arena = _Arena()
