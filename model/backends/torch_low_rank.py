"""Adapters in torch's operations: two small products for the rows of each adapter.

They are the reference for our own kernels, and serve where those do not.
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
        by_slot: each adapter's slot with its rows, a slice where they lie together.
        rows: [R] int64 on the host, the rows that have an adapter, those of one adapter together.
        segments: [S, 3] int64 on the host, for each adapter its slot, where its rows begin in `rows`, and their number.
    """

    by_slot: list[tuple[int, slice | torch.Tensor]]
    rows: torch.Tensor
    segments: torch.Tensor


def plan_adapter_rows(spans: AbstractSequence[SequenceSpan], device: torch.device) -> AdapterRows | None:
    """Finds the rows of each adapter in a step; None where no row has one. Those of `by_slot` go to the device."""
    rows_of: dict[int, list[int]] = {}
    first = 0
    for span in spans:
        if span.adapter_slot >= 0:
            rows_of.setdefault(span.adapter_slot, []).extend(range(first, first + span.num_tokens))
        first += span.num_tokens
    if not rows_of:
        return None
    by_slot: list[tuple[int, slice | torch.Tensor]] = []
    segments: list[tuple[int, int, int]] = []
    all_rows: list[int] = []
    for slot, rows in rows_of.items():
        segments.append((slot, len(all_rows), len(rows)))
        all_rows += rows
        are_together = rows[-1] - rows[0] + 1 == len(rows)
        by_slot.append(
            (slot, slice(rows[0], rows[-1] + 1) if are_together else torch.tensor(rows).to(device, non_blocking=True))
        )
    return AdapterRows(
        by_slot, torch.tensor(all_rows, dtype=torch.int64), torch.tensor(segments, dtype=torch.int64)
    )


def in_dtype(factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a factor in the activations' dtype.

    Raises:
        AdapterError: it is beyond what that dtype can hold.
    """
    out = factor.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(out).all()):
        raise AdapterError("its numbers, times alpha / rank, are beyond float16 (65,504): use --dtype float32")
    return out


class TorchLowRankTable:
    """Implements `LowRankTable`, with factors on a device."""

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
