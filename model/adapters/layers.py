"""The layers of a model that has adapters: its own, with what the rows' adapters add or put in their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from model.backends.base import LinearKernel, LowRankTable
from model.execution.forward_batch import ForwardBatch


class AdaptedLinear(nn.Module):
    """A linear layer with the low-rank factors of adapters.

    Args:
        base: the layer as loaded.
        table: of the factors.
    """

    def __init__(self, base: nn.Module, table: LowRankTable) -> None:
        super().__init__()
        self.base = base
        self._table = table

    @property
    def kernel(self) -> LinearKernel | None:
        """Of the layer below, for rows without adapters."""
        return getattr(self.base, "kernel", None)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [T, in_features] to [T, out_features]."""
        out: torch.Tensor = self.base(x, batch)
        return out if batch.adapter_plan is None else self._table.add(out, x, batch.adapter_plan)


class AdaptedEmbedding(nn.Module):
    """An embedding in whose place some adapters have one of their own.

    Args:
        base: the layer as loaded.
        own: rows by token id, [vocab_size, hidden_size], by the adapter's slot; may change between steps.
    """

    def __init__(self, base: nn.Module, own: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self.base = base
        self._own = own

    def forward(self, token_ids: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [T] int64 to [T, hidden_size]."""
        out: torch.Tensor = self.base(token_ids, batch)
        if not self._own or batch.adapter_plan is None:
            return out
        first = 0
        for span in batch.spans:
            rows = slice(first, first + span.num_tokens)
            own = self._own.get(span.adapter_slot)
            if own is not None:
                out[rows] = F.embedding(token_ids[rows], own)
            first = rows.stop
        return out
