"""Adapters in torch's operations: one small product of two factors for the rows of each adapter.

The reference for the kernels of our own, and what serves where those do not.
"""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.adapters.low_rank import LowRankUpdate, fold
from model.contract.errors import AdapterError
from model.execution.forward_batch import SequenceSpan


class AdapterRows(NamedTuple):
    """Which rows of a step have which adapter.

    Attributes:
        by_slot: each adapter with its rows: a slice where they lie together.
        rows: [R] int64 on the host, those that have one, the rows of an adapter together.
        segments: [S, 3] int64 on the host: slot, first of its rows in `rows`, how many.
    """

    by_slot: list[tuple[int, slice | torch.Tensor]]
    rows: torch.Tensor
    segments: torch.Tensor


def plan_adapter_rows(spans: AbstractSequence[SequenceSpan], device: torch.device) -> AdapterRows | None:
    """Finds the rows of each adapter; None where no row has one.

    Args:
        spans: of the step.
        device: of the rows in `by_slot`.
    """
    runs: dict[int, list[tuple[int, int]]] = {}
    first = 0
    for span in spans:
        end = first + span.num_tokens
        if span.adapter_slot >= 0:
            known = runs.setdefault(span.adapter_slot, [])
            if known and known[-1][1] == first:
                known[-1] = (known[-1][0], end)
            else:
                known.append((first, end))
        first = end
    if not runs:
        return None
    numbers = {slot: [row for first, end in known for row in range(first, end)] for slot, known in runs.items()}
    segments = []
    first = 0
    for slot, rows in numbers.items():
        segments.append((slot, first, len(rows)))
        first += len(rows)
    return AdapterRows(
        [(slot, _rows(known, numbers[slot], device)) for slot, known in runs.items()],
        torch.tensor([row for rows in numbers.values() for row in rows], dtype=torch.int64),
        torch.tensor(segments, dtype=torch.int64),
    )


def _rows(runs: list[tuple[int, int]], numbers: list[int], device: torch.device) -> slice | torch.Tensor:
    return slice(*runs[0]) if len(runs) == 1 else torch.tensor(numbers).to(device, non_blocking=True)


def in_dtype(factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a factor in the activations' type.

    Raises:
        AdapterError: it is beyond what that type can hold.
    """
    out = factor.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(out).all()):
        raise AdapterError("its numbers, times alpha / rank, are beyond float16 (65,504): use --dtype float32")
    return out


class TorchLowRankTable:
    """Implements `LowRankTable`.

    Args:
        num_outputs: of the layer.
        num_slots: how many adapters there may be.
        dtype: of the activations.
        device: of the factors.
    """

    def __init__(self, num_outputs: int, num_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self._num_outputs = num_outputs
        self._dtype = dtype
        self._device = device
        self._factors: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * num_slots

    def prepare(self, updates: AbstractSequence[LowRankUpdate]) -> tuple[tuple[torch.Tensor, torch.Tensor], int]:
        """See `LowRankTable`."""
        a, b = (in_dtype(factor, self._dtype).to(self._device) for factor in fold(updates, self._num_outputs))
        return (a, b), a.nbytes + b.nbytes

    def put(self, slot: int, prepared: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """See `LowRankTable`."""
        self._factors[slot] = prepared

    def add(self, out: torch.Tensor, x: torch.Tensor, plan: AdapterRows) -> torch.Tensor:
        """See `LowRankTable`."""
        for slot, rows in plan.by_slot:
            factors = self._factors[slot]
            if factors is not None:
                a, b = factors
                out[rows] += F.linear(F.linear(x[rows], a), b)
        return out
