"""RMSNorm as the published code computes it: normalised in float32, cast back, then multiplied by the weight."""

from __future__ import annotations

import torch
from torch import nn

from model.backends.base import Backend


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension.

    Args:
        hidden_size: the length of that dimension.
        epsilon: added to the mean square.
        backend: does the arithmetic.
        dtype: dtype of weight and activations.
    """

    def __init__(self, hidden_size: int, epsilon: float, *, backend: Backend, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype, device="meta"), requires_grad=False)
        self._epsilon = epsilon
        self._backend = backend

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps x and the residual [num_tokens, hidden_size] to their normalised sum, and the sum."""
        return self._backend.add_rms_norm(x, residual, self.weight, self._epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [num_tokens, hidden_size], float32 or of the weight's dtype, to that shape in the weight's dtype."""
        return self._backend.rms_norm(x, self.weight, self._epsilon)
