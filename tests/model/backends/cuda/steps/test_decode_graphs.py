"""Decode steps as graphs: what they read, which one serves, and what happens where recording fails."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from model.backends.base import StepContext
from model.backends.cuda.device_faults import BrokenDeviceError
from model.backends.cuda.steps import recording
from model.backends.cuda.steps.angles import Angles
from model.backends.cuda.steps.batch_builder import BatchBuilder
from model.backends.cuda.steps.decode_graphs import CudaDecodeGraphs
from model.distributed.ranks import OutOfStepError
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import allocate_kv_cache
from model.scheduling.sequence import UNKNOWN_TOKEN
from tests.model.backends.cuda.fakes import ANGLES, CPU, FailingRecorder, FakeRecorder, InterpretedBackend
from tests.support.random_attention import CONFIG

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")


class FakeModel:
    """Notes the batches it is run with; its logits name the token of each row."""

    def __init__(self) -> None:
        self.batches: list[ForwardBatch] = []

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        self.batches.append(batch)
        return torch.nn.functional.one_hot(batch.token_ids, 100).float()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


def context_of(model: FakeModel, max_model_len: int = 60, **changes: Any) -> StepContext:
    """Six sequences at most; what the model returns passes for hidden states and for logits."""
    cache = allocate_kv_cache(CONFIG, num_blocks=30, block_size=4, dtype=torch.float32, device=CPU)
    return StepContext(model, lambda rows: rows, CONFIG, cache, torch.arange(50, 56), max_model_len, 16, **changes)


def capture(model: FakeModel, recorder: FakeRecorder, **options: Any) -> CudaDecodeGraphs:
    return CudaDecodeGraphs(BatchBuilder(context_of(model), ANGLES, torch.float32), recorder, **options)


def test_recorded_rows_have_their_adapters(model: FakeModel) -> None:
    """A replay reads the slots of this step's rows, not of the one that was recorded; rows to spare have none."""
    graphs = capture(model, FakeRecorder(), with_adapters=True)
    assert all(batch.adapter_plan.slots.tolist() == [-1] * len(batch.token_ids) for batch in model.batches)
    graphs.run([SequenceSpan([i], 0, 1.0, [i], 1, slot) for i, slot in enumerate((2, -1, 0))], [-1] * 3)
    assert model.batches[-1].adapter_plan.slots.tolist() == [2, -1, 0, -1]
    graphs.run([SequenceSpan([1], 0, 1.0, [1], 1, 1)], [-1])
    assert model.batches[-1].adapter_plan.slots.tolist() == [1]


def test_a_step_runs_in_the_next_larger_graph(model: FakeModel) -> None:
    recorder = FakeRecorder()
    graphs = capture(model, recorder)
    assert graphs.batch_sizes == [1, 2, 4, 6]
    assert graphs.max_num_rows == 6
    assert [n for n, _ in itertools.groupby(len(batch.token_ids) for batch in model.batches)] == [1, 2, 4, 6]
    for num_rows, expected in ((1, 1), (2, 2), (3, 4), (5, 6), (6, 6)):
        spans = [SequenceSpan([7 + i], i, 1.0, [i], 1) for i in range(num_rows)]
        logits = graphs.run(spans, [-1] * num_rows)
        assert recorder.replayed[-1] == expected
        assert logits.argmax(-1).tolist() == [7 + i for i in range(num_rows)]


def test_what_a_graph_reads(model: FakeModel) -> None:
    """Known and unknown tokens, alphas, blocks; surplus rows write to no slot and read no key."""
    graphs = capture(model, FakeRecorder())
    graphs.run([SequenceSpan([3], i, 1.0, [9], 1) for i in range(4)], [-1] * 4)
    spans = [SequenceSpan([7], 33, 3.0, list(range(20, 11, -1)), 1), SequenceSpan([UNKNOWN_TOKEN], 4, 1.0, [1, 5], 1)]
    spans.append(SequenceSpan([8], 0, 7.0, [2], 1))
    graphs.run(spans, [-1, 5, -1])
    batch = model.batches[-1]
    expected = ForwardBatch.build([s._replace(token_ids=[0]) for s in spans], CONFIG, 4, CPU)
    assert batch.token_ids.tolist() == [7, 55, 8, 0]
    assert batch.slots.tolist() == [*expected.slots.tolist(), -1]
    assert torch.equal(batch.cos[:3], expected.cos)
    assert torch.equal(batch.sin[:3], expected.sin)
    assert torch.equal(batch.query_scale[:3], expected.query_scale)
    decodes = batch.attention_plan.decodes
    assert decodes.lengths.tolist() == [34, 5, 1, 0]
    starts = decodes.table_starts.tolist()
    assert decodes.table[starts[0] : starts[0] + 9].tolist() == list(range(20, 11, -1))
    assert decodes.table[starts[1] : starts[1] + 2].tolist() == [1, 5]
    assert decodes.table[starts[2]].item() == 2


def test_a_staging_buffer_is_not_overwritten_while_it_is_read(model: FakeModel) -> None:
    recorder = FakeRecorder()
    graphs = capture(model, recorder)
    for number in range(5):
        graphs.run([SequenceSpan([1], 0, 1.0, [0], 1)], [-1])
        assert recorder.num_marks == number + 1
        assert recorder.num_waits == max(0, number - 1), "waits for the copy of two steps ago"


def test_recording_without_memory(model: FakeModel) -> None:
    """What could be recorded is used; with nothing, steps run as any other."""
    error = torch.OutOfMemoryError("no memory")
    graphs = capture(model, FailingRecorder(error, 2))
    assert graphs.batch_sizes == [1, 2]
    assert graphs.max_num_rows == 2
    assert capture(model, FailingRecorder(error, 0)).max_num_rows == 0


@pytest.mark.parametrize("max_rows", [0, 2])
@pytest.mark.parametrize("error", [RuntimeError("capture invalidated"), torch.AcceleratorError("no"), KeyError("x")])
def test_recording_that_fails_leaves_none(
    model: FakeModel, error: Exception, max_rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = capture(model, FailingRecorder(error, max_rows))
    assert graphs.max_num_rows == 0
    assert type(error).__name__ in caplog.text


def test_a_device_that_died_while_recording_ends_the_start(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object, **kwargs: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr("model.backends.cuda.device_faults.torch.ones", die)
    with pytest.raises(BrokenDeviceError, match="capture invalidated"):
        capture(model, FailingRecorder(RuntimeError("capture invalidated"), 0))


@pytest.mark.parametrize("kind", ["old", "nan"])
def test_a_replay_that_disagrees_leaves_none(
    model: FakeModel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph that gives the numbers it was recorded with, or none, from some size on."""

    class Stale(FakeRecorder):
        def record(self, run: Any) -> Any:
            replay, output = super().record(run)
            if len(output) < 4:
                return replay, output
            return (lambda: None if kind == "old" else output.fill_(float("nan"))), output

    assert capture(model, Stale()).max_num_rows == 0
    assert "a replayed step is off by" in caplog.text


def test_a_backend_without_room_for_its_tables_has_no_graphs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("no memory for angles")

    monkeypatch.setattr(Angles, "make", fail)
    backend: Any = InterpretedBackend(CPU)
    assert backend.capture_decode(context_of(FakeModel())) is None
    assert "no memory for angles" in caplog.text
    assert backend.make_steps(context_of(FakeModel())) is None
    assert "done on the host" in caplog.text
    with pytest.raises(OutOfStepError, match="cannot be recorded on every rank"):
        backend.capture_decode(context_of(FakeModel(), any_rank=lambda is_true: is_true))


def test_recording_that_takes_too_long_keeps_the_smallest(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_CAPTURE_S", -1.0)
    recorder = FakeRecorder()
    graphs = capture(model, recorder)
    assert graphs.batch_sizes == [1]
    graphs.run([SequenceSpan([1], 0, 1.0, [0], 1)], [-1])
    assert recorder.replayed[-1] == 1
