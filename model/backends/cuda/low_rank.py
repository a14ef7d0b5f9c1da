"""The low-rank factors of adapters on a GPU: all slots of a layer in two tensors, sized by the largest rank allowed.

Rows of decodes go through one kernel, whatever their adapters; a prompt's many rows are worth a library's product.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.adapters.low_rank import LowRankUpdate
from model.backends.cuda.kernels.matmul.low_rank import BLOCK_RANKS
from model.backends.cuda.operations import Operations
from model.backends.torch_low_rank import in_dtype
from model.execution.forward_batch import SequenceSpan

# From so many rows on, a sequence's are multiplied by the library.
_MANY_ROWS = 32


class AdapterTable(NamedTuple):
    """The rows of a step that have adapters.

    Attributes:
        slots: [T] int32, -1 for rows without an adapter and for those of chunks; None where there are no others.
        chunks: slot, first row and last row + 1 of sequences with many.
    """

    slots: torch.Tensor | None
    chunks: list[tuple[int, int, int]]


def plan_adapter_table(spans: AbstractSequence[SequenceSpan], device: torch.device) -> AdapterTable | None:
    """Finds the rows of each adapter; None where no row has one."""
    if all(span.adapter_slot < 0 for span in spans):
        return None
    slots: list[int] = []
    chunks = []
    for span in spans:
        slot, first = span.adapter_slot, len(slots)
        if slot >= 0 and span.num_tokens >= _MANY_ROWS:
            chunks.append((slot, first, first + span.num_tokens))
            slot = -1
        slots += [slot] * span.num_tokens
    table = None
    if any(slot >= 0 for slot in slots):
        table = torch.tensor(slots, dtype=torch.int32).to(device, non_blocking=True)
    return AdapterTable(table, chunks)


class _Factors(NamedTuple):
    """An adapter's factors for one layer, filled up with zeros to the largest rank."""

    a: torch.Tensor
    b: torch.Tensor


class CudaLowRankTable:
    """Implements `LowRankTable`.

    Args:
        operations: kernels, or what stands in for them.
        num_inputs: inputs of the layer.
        num_outputs: outputs of the layer.
        num_slots: how many adapters there may be.
        max_rank: the largest rank of their factors.
        num_parts: equal parts of the outputs that may be trained apart.
        dtype: dtype of activations and factors.
        device: holds the factors.
    """

    def __init__(
        self,
        operations: Operations,
        num_inputs: int,
        num_outputs: int,
        num_slots: int,
        max_rank: int,
        num_parts: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._operations = operations
        self._num_parts = num_parts
        self._rank = -(-max_rank // BLOCK_RANKS) * BLOCK_RANKS
        self._a = torch.zeros(num_slots, self._num_parts * self._rank, num_inputs, dtype=dtype, device=device)
        self._b = torch.zeros(num_slots, num_outputs, self._rank, dtype=dtype, device=device)

    def prepare(self, updates: AbstractSequence[LowRankUpdate]) -> tuple[_Factors, int]:
        """See `LowRankTable`."""
        a, b = torch.zeros(self._a.shape[1:]), torch.zeros(self._b.shape[1:])
        part_outputs = len(b) // self._num_parts
        for update in updates:
            rank = len(update.a)
            b[update.outputs, :rank] = update.scaled_b()
            for part in range(update.outputs.start // part_outputs, -(-update.outputs.stop // part_outputs)):
                a[part * self._rank : part * self._rank + rank] = update.a
        factors = _Factors(*(in_dtype(factor, self._a.dtype).to(self._a.device) for factor in (a, b)))
        return factors, factors.a.nbytes + factors.b.nbytes

    def put(self, slot: int, prepared: _Factors | None) -> None:
        """See `LowRankTable`."""
        with torch.inference_mode():
            if prepared is None:
                self._a[slot].zero_()
                self._b[slot].zero_()
            else:
                self._a[slot].copy_(prepared.a)
                self._b[slot].copy_(prepared.b)

    def add(self, out: torch.Tensor, x: torch.Tensor, plan: AdapterTable) -> torch.Tensor:
        """See `LowRankTable`."""
        if plan.slots is not None:
            out = self._operations["add_low_rank"](out.contiguous(), x.contiguous(), plan.slots, self._a, self._b)
        part_outputs = out.shape[1] // self._num_parts
        for slot, first, last in plan.chunks:
            hidden = F.linear(x[first:last], self._a[slot])
            for part in range(self._num_parts):
                ranks = slice(part * self._rank, (part + 1) * self._rank)
                outputs = slice(part * part_outputs, (part + 1) * part_outputs)
                out[first:last, outputs] += F.linear(hidden[:, ranks], self._b[slot, outputs])
        return out
