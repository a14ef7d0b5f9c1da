"""The token embedding, without storage until the checkpoint is loaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.execution.forward_batch import ForwardBatch


class Embedding(nn.Module):
    """Rows by token id.

    Args:
        vocab_size: number of rows, padding rows included.
        hidden_size: length of each.
        dtype: of the rows.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(vocab_size, hidden_size, dtype=dtype, device="meta"), requires_grad=False
        )

    def forward(self, token_ids: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Maps [T] int64 to [T, hidden_size]; the step is there for what treats its rows differently."""
        return F.embedding(token_ids, self.weight)
