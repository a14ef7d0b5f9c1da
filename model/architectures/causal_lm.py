"""The interface of a model, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from model.backends.weights import GroupedWeight
from model.execution.forward_batch import ForwardBatch
from model.execution.kv_cache import KVCache


class CausalLM(nn.Module):
    """A decoder over a flat token batch; made without storage, then filled by `load_weights`."""

    def parameter_name(self, checkpoint_name: str) -> str | None:
        """Returns what a stored tensor is called in the model, or None for one that is no weight of this stage."""
        return checkpoint_name

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """Runs the step's new tokens.

        Args:
            batch: T new tokens.
            cache: keys and values of everything before them; theirs are added.

        Returns:
            [T, hidden_size]: the normalised final hidden states of all new tokens; before the last stage the states
            that were sent on.
        """
        raise NotImplementedError

    def quantize_head(self, quantize: Callable[[torch.Tensor], GroupedWeight | None]) -> None:
        """Has the output layer's weight packed while it is loaded; call it before the load."""
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps [R, hidden_size] to [R, vocab_size] float32, for the leader of its ranks; others get something else."""
        raise NotImplementedError
