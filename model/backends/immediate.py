"""The part of a backend that has nothing to queue, record or set aside: each call returns when its work is done."""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.backends.base import DecodeGraphs, HostCopy, StepContext, Steps
from model.contract.config import ModelConfig
from model.sampling.sampling_row import SampleTokens


class ImmediateSteps:
    """The answers of such a backend to what `Backend` asks about steps."""

    runs_ahead = False
    sample_tokens: SampleTokens | None = None

    def measure_step_bytes(self, run: Callable[[], object]) -> int:
        """See `Backend`. The cache takes a part of what is free; steps have the rest."""
        return 0

    def step_table_bytes(self, config: ModelConfig, max_num_seqs: int, max_model_len: int, block_size: int) -> int:
        """See `Backend`. A step makes what it needs."""
        return 0

    def release_memory(self) -> None:
        """See `Backend`. Nothing is kept."""

    def finish_loading(
        self, config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> None:
        """See `Backend`. Nothing is left to be settled."""

    def capture_decode(self, context: StepContext, *, with_adapters: bool = False) -> DecodeGraphs | None:
        """See `Backend`. There is nothing to record."""
        context.is_on_any_rank(True)
        return None

    def make_steps(self, context: StepContext, *, is_recorded: bool = True) -> Steps | None:
        """See `Backend`. A batch is laid out where it is computed, or as for a CPU."""
        context.is_on_any_rank(True)
        return None

    def copy_to_host(self, tensors: list[torch.Tensor]) -> HostCopy:
        """See `Backend`. They are there, or waited for when they are read."""
        return lambda: tensors
