"""Choosing tokens on the device: rows of parameters become the columns that the sampling kernels read."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence

import torch

from model.backends.cuda.kernels.sampling.sample_rows import RowFilters
from model.backends.cuda.operations import Operations
from model.backends.cuda.steps.attention_plan import ALIGNMENT
from model.sampling import torch_sampling
from model.sampling.sampling_row import SamplingRow, uniform


def sample_tokens(
    operations: Operations, logits: torch.Tensor, rows: AbstractSequence[SamplingRow]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses a token for each row; but for the operations a `model.sampling.sampling_row.SampleTokens`."""
    if "sample_rows" in operations.replaced:
        return torch_sampling.sample_tokens(logits, rows)
    random = [row.sampling for row in rows if row.sampling.temperature > 0]
    try:
        ids, is_valid = operations["sample_rows"](
            logits,
            _row_filters(rows, logits.device),
            has_random=bool(random),
            has_top_k=any(sampling.top_k > 0 for sampling in random),
            has_top_p=any(sampling.top_p < 1 for sampling in random),
        )
    except Exception:
        if random or "sample_rows" not in operations.replaced:
            raise  # the logits may be half-way to weights: the step is run again
        return torch_sampling.sample_tokens(logits, rows)
    return ids, is_valid


def _row_filters(rows: AbstractSequence[SamplingRow], device: torch.device) -> RowFilters:
    """The parameters of rows, in one copy; columns are padded, so that kernels see the same alignment each time."""
    filters = [_filters(row) for row in rows]
    padding = [0.0] * (-len(rows) % ALIGNMENT)
    columns = [[*column, *padding] for column in zip(*filters, strict=True)]
    numbers = torch.tensor(columns, dtype=torch.float32).to(device, non_blocking=True)
    temperature, top_k, top_p, min_p, draws = numbers[:, : len(rows)].unbind(0)
    return RowFilters(temperature, top_k.to(torch.int32), top_p, min_p, draws)


def _filters(row: SamplingRow) -> tuple[float, int, float, float, float]:
    sampling = row.sampling
    draw = uniform(row.stream_key, row.num_output_tokens) if sampling.temperature > 0 else 0.0
    return sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, draw
