"""Rows of sampling parameters on their way to the sampling kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.backends.cuda.backend import CudaBackend
from model.backends.cuda.kernels.launch import recorded
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters, sample_rows
from model.backends.cuda.operations import KERNELS
from model.contract.sampling_params import SamplingParams
from model.sampling.sampling_row import SamplingRow, stream_key
from tests.model.backends.cuda.fakes import CPU

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7])
def test_the_sampling_kernels_see_one_alignment(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another would be another kernel: every stream would wait for its compiler."""
    seen: list[RowFilters] = []

    def look(logits: torch.Tensor, filters: RowFilters, **needs: bool) -> Any:
        assert needs == {"has_random": True, "has_top_k": True, "has_top_p": True}
        seen.append(filters)
        return sample_rows(logits, filters, **needs)

    monkeypatch.setitem(KERNELS, "sample_rows", look)
    sampling = SamplingParams(max_tokens=9, temperature=0.5, top_k=7, top_p=0.75, min_p=0.25)
    rows = [SamplingRow(i, sampling, [0] * 4, 3, stream_key(i, 0)) for i in range(num_rows)]
    backend = CudaBackend(CPU)
    assert backend.sample_tokens is not None
    with recorded() as launches:
        ids, _ = backend.sample_tokens(torch.zeros(num_rows, 1008), rows)
    assert len(ids) == num_rows
    assert len(launches) > 10
    for launch in launches:
        tensors = [argument for argument in launch.arguments if isinstance(argument, torch.Tensor)]
        assert all(tensor.data_ptr() % 16 == 0 and tensor.is_contiguous() for tensor in tensors)
    (filters,) = seen
    for column, value in zip(filters, (0.5, 7, 0.75, 0.25), strict=False):
        assert column.tolist() == [value] * num_rows


def test_draws_are_the_streams_own() -> None:
    """A flat row maps the stream's number to a token directly."""
    backend = CudaBackend(CPU)
    sampling = SamplingParams(max_tokens=9, temperature=1.0)
    rows = [SamplingRow(i, sampling, [0] * 4, 3, stream_key(i, 0)) for i in range(3)]
    assert backend.sample_tokens is not None
    ids, is_valid = backend.sample_tokens(torch.zeros(3, 1000), rows)
    again, _ = backend.sample_tokens(torch.zeros(1, 1000), rows[1:2])
    assert is_valid.all()
    assert len(set(ids.tolist())) == 3
    assert again.tolist() == ids[1:2].tolist()
