"""The token embedding, without storage until the checkpoint is loaded; its rows may stay as small integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.backends.weights import GroupedWeight
from model.distributed.ranks import Ranks
from model.distributed.shard import Cut, share_of
from model.execution.forward_batch import ForwardBatch
from model.quantization.grouped import StoredRows


class Embedding(nn.Module):
    """Rows by token id.

    Args:
        vocab_size: number of rows, padding rows included.
        hidden_size: length of each.
        dtype: dtype of the rows.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(
            torch.empty(vocab_size, hidden_size, dtype=dtype, device="meta"), requires_grad=False
        )
        self._dtype = dtype
        self._rows: StoredRows | None = None

    def take_grouped(self, weight: GroupedWeight) -> int:
        """Keeps rows as they are stored: a step expands the few that it reads. Returns their bytes."""
        self.weight = None
        self._rows = StoredRows(weight)
        return self._rows.num_bytes

    def forward(self, token_ids: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [T] int64 to [T, hidden_size]; the step is there for what treats its rows differently."""
        if self._rows is not None:
            return self._rows.expand(token_ids).to(self._dtype)
        assert self.weight is not None
        return F.embedding(token_ids, self.weight)


class VocabParallelEmbedding(Embedding):
    """Each rank has some of the rows; those it does not have are 0 in the sum.

    Args:
        vocab_size: number of rows on all ranks.
        hidden_size: length of each.
        dtype: dtype of the rows.
        ranks: the ranks that share them.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype, ranks: Ranks) -> None:
        first, end = share_of(vocab_size, ranks.place.rank, ranks.place.size)
        super().__init__(end - first, hidden_size, dtype=dtype)
        self.cuts = {"weight": Cut(0, vocab_size, ((first, end),))}
        self._first = first
        self._num_rows = end - first
        self._ranks = ranks

    def forward(self, token_ids: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """See `Embedding`."""
        places = token_ids - self._first
        is_elsewhere = (places < 0) | (places >= self._num_rows)
        rows = super().forward(places.masked_fill(is_elsewhere, 0), batch)
        return self._ranks.sum(rows.masked_fill_(is_elsewhere[:, None], 0))
