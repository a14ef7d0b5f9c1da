"""Drawing from a recorded step's logits gives what drawing from any others does, and a failure leaves it launched."""

from __future__ import annotations

import pytest
import torch

from model.backends.cuda.backend import CudaBackend
from model.backends.cuda.kernels.sampling import sample_rows
from model.backends.cuda.recorded_draws import RecordedDraws
from model.contract.sampling_params import SamplingParams
from model.sampling.sampling_row import SamplingRow, stream_key
from tests.model.backends.cuda.test_cuda_backend import FailingRecorder, FakeRecorder

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")

SAMPLINGS = [
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 0.0, "top_k": 3},
    {"temperature": 1.3, "min_p": 0.02},
    {"temperature": 0.7, "top_p": 0.5, "top_k": 40},
]


def rows_of(*numbers: int, place: int = 9) -> list[SamplingRow]:
    samplings = [SamplingParams(max_tokens=9, **SAMPLINGS[number]) for number in numbers]  # type: ignore[arg-type]
    return [SamplingRow(i, s, [0] * (place + i), 3, stream_key(i, 0)) for i, s in enumerate(samplings)]


def test_draws_are_those_of_any_step() -> None:
    """Fewer rows than were recorded, greedy ones among them, with top_k and without, one after another."""
    backend = CudaBackend(CPU)
    assert backend.sample_tokens is not None
    recorder = FakeRecorder()
    recorded = RecordedDraws(sample_rows, recorder, 3, CPU)
    logits = torch.randn(3, 300)
    recorded.record([logits])
    backend._draws.append(recorded)
    earlier = []
    for numbers in ((0, 1, 2), (3,)):
        rows = rows_of(*numbers)
        logits.copy_(torch.randn(3, 300) * 3)
        expected_ids, _ = backend.sample_tokens(logits[: len(rows)].clone(), rows)
        count = len(recorder.replayed)
        ids, is_valid = backend.sample_tokens(logits[: len(rows)], rows)
        assert len(recorder.replayed) == count + 1
        assert ids.tolist() == expected_ids.tolist()
        assert is_valid.tolist() == [True] * len(rows)
        earlier.append((ids, expected_ids))
    assert all(torch.equal(ids, expected) for ids, expected in earlier), "later replays leave them as they are"


def test_rows_that_are_no_numbers_are_told() -> None:
    recorded = RecordedDraws(sample_rows, FakeRecorder(), 2, CPU)
    logits = torch.randn(2, 300)
    recorded.record([logits])
    logits.copy_(torch.randn(2, 300))
    logits[1, 7] = float("nan")
    assert recorded.run(logits, rows_of(0, 0))[1].tolist() == [True, False]


def test_what_cannot_be_recorded_is_launched(caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.randn(2, 300)
    recorded = RecordedDraws(sample_rows, FailingRecorder(RuntimeError("capture invalidated"), 0), 2, CPU)
    recorded.record([logits])
    assert not recorded.knows(logits)
    assert "capture invalidated" in caplog.text
