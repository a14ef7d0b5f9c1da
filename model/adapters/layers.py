"""The layers of a model with adapters: its own, to which the rows' adapters add or which they replace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from model.backends.base import LinearKernel, LowRankTable
from model.execution.forward_batch import ForwardBatch


class AdaptedLinear(nn.Module):
    """A linear layer with a table of the adapters' low-rank factors."""

    def __init__(self, base: nn.Module, table: LowRankTable) -> None:
        super().__init__()
        self.base = base
        self._table = table

    @property
    def kernel(self) -> LinearKernel | None:
        """The base layer's kernel, for rows without adapters."""
        return getattr(self.base, "kernel", None)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [T, in_features] to [T, out_features]."""
        out: torch.Tensor = self.base(x, batch)
        return out if batch.adapter_plan is None else self._table.add(out, x, batch.adapter_plan)


class AdaptedEmbedding(nn.Module):
    """An embedding that some adapters replace by their own.

    Args:
        base: the model's embedding.
        own: slot of an adapter -> its embedding [vocab_size, hidden_size]; may change between steps.
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
