"""Steps with prompts, replayed: layouts, the choice of a recorded size, and the same replies whatever is planned.

Torch's operations stand in for the kernels, and a replay runs its work anew: what is tested is what a graph would read.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from model.backends.base import StepContext
from model.backends.cuda.backend import CudaBackend
from model.backends.cuda.operations import TORCH
from model.backends.cuda.steps import mixed_steps, recording
from model.backends.cuda.steps.batch_builder import BatchBuilder
from model.backends.cuda.steps.mixed_steps import CudaSteps
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import allocate_kv_cache
from model.scheduling.sequence import UNKNOWN_TOKEN
from tests.model.backends.cuda.fakes import ANGLES, CPU, FailingRecorder, FakeRecorder
from tests.support.engine_driver import Driver, make_driver
from tests.support.random_attention import CONFIG
from tests.support.staggered_requests import facts, random_requests, run_staggered

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")


class FakeModel:
    """Notes the batches it is run with; a row's hidden state is its token."""

    def __init__(self) -> None:
        self.batches: list[ForwardBatch] = []

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        self.batches.append(batch)
        return batch.token_ids[:, None].float()


def make_steps(model: FakeModel, recorder: Any, max_num_tokens: int = 100, **options: Any) -> CudaSteps:
    cache = allocate_kv_cache(CONFIG, num_blocks=30, block_size=4, dtype=torch.float32, device=CPU)
    context = StepContext(model, lambda rows: rows, CONFIG, cache, torch.arange(50, 70), 60, max_num_tokens)
    builder = BatchBuilder(context, ANGLES, torch.float32, TORCH["make_decode_inputs"])
    return CudaSteps(builder, recorder, **options)


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_steps, "_NUM_TOKENS", (16, 32, 40))
    monkeypatch.setattr(mixed_steps, "MAX_RECORDED_TOKENS", 40)


SPANS = [
    SequenceSpan([7], 9, 3.0, [5, 3, 8], 1),
    SequenceSpan([11, 12, 13, 14, UNKNOWN_TOKEN], 3, 7.0, [1, 2], 2),
    SequenceSpan([UNKNOWN_TOKEN], 0, 1.0, [9], 1),
    SequenceSpan([21, 22], 0, 1.0, [4], 0),
]


@pytest.mark.parametrize("is_recorded", [True, False])
def test_what_a_step_reads(is_recorded: bool) -> None:
    """Chunks and decodes, tokens that only the device knows, alphas, blocks: as a batch of its own would have them."""
    model, recorder = FakeModel(), FakeRecorder()
    made = make_steps(model, recorder, is_recorded=is_recorded)
    made.run([SequenceSpan([3] * 14, 0, 1.0, [9, 8, 7, 6], 1)], [-1])
    hidden = made.run(SPANS, [-1, 5, 19, -1])
    assert hidden[:, 0].tolist() == [7, 14, 55, 69]
    assert (recorder.replayed[-1:] == [16]) == is_recorded
    batch = model.batches[-1]
    expected = ForwardBatch.build(list(SPANS), CONFIG, 4, CPU)
    num_rows = len(expected.token_ids)
    assert len(batch.token_ids) == (16 if is_recorded else num_rows)
    assert batch.token_ids[:num_rows].tolist() == [7, 11, 12, 13, 14, 55, 69, 21, 22]
    for name in ("cos", "sin", "query_scale", "slots"):
        assert torch.equal(getattr(batch, name)[:num_rows], getattr(expected, name)), name
    assert (batch.slots[num_rows:] == -1).all(), "rows to spare write nothing"
    plan = batch.attention_plan
    decodes, tiles = plan.decodes, plan.tiles
    assert decodes.rows[:2].tolist() == [0, 6]
    assert decodes.lengths[:2].tolist() == [10, 1]
    assert (decodes.rows[2:] == -1).all()
    assert (decodes.lengths[2:] == 0).all()
    starts = decodes.table_starts.tolist()
    assert decodes.table[starts[0] : starts[0] + 3].tolist() == [5, 3, 8]
    records = tiles.records.tolist()
    assert [record[:3] for record in records[:2]] == [[1, 3, 5], [7, 0, 2]]
    assert all(record[2] == 0 for record in records[2:]), "tiles to spare have no rows"
    assert tiles.table[records[0][3] : records[0][3] + 2].tolist() == [1, 2]


def test_the_recorded_size_that_serves() -> None:
    recorder = FakeRecorder()
    made = make_steps(FakeModel(), recorder)
    assert [(s.num_tokens, s.num_decodes) for s in made.sizes] == [(16, 16), (32, 16), (32, 20), (40, 16), (40, 20)]
    count = len(recorder.replayed)

    def replayed(*lengths: int, slot: int = -1) -> int | None:
        spans = [SequenceSpan([1] * n, 0, 1.0, list(range(-(-n // 4))), 1, slot) for n in lengths]
        before = len(recorder.replayed)
        made.run(spans, [-1] * len(spans))
        return recorder.replayed[-1] if len(recorder.replayed) > before else None

    assert count == 5
    assert replayed(15) == 16
    assert replayed(16) == 16
    assert replayed(17) == 32
    assert replayed(12, *[1] * 20) == 32
    assert replayed(39, 1) == 40
    assert replayed(40, 1) is None, "more tokens than any has"
    assert replayed(8, slot=0) is None, "what adapters add to chunks is not recorded"
    assert replayed(*[2] * 19) == 40


@pytest.mark.parametrize("max_num_tokens", [1, 2, 3, 17])
def test_steps_of_any_limit_are_recorded(max_num_tokens: int) -> None:
    """Up to it; the step that is tried has as many tokens as fit."""
    made = make_steps(FakeModel(), FakeRecorder(), max_num_tokens)
    assert {size.num_tokens for size in made.sizes} == {min(16, max_num_tokens), max_num_tokens}


def test_too_many_chunks_are_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed_steps, "_MAX_CHUNKS", 2)
    recorder = FakeRecorder()
    made = make_steps(FakeModel(), recorder)
    assert made.sizes[0].num_tiles == 3
    count = len(recorder.replayed)
    hidden = made.run([SequenceSpan([i, i], 0, 1.0, [i], 1) for i in range(4)], [-1] * 4)
    assert len(recorder.replayed) == count
    assert hidden[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("max_rows", [0, 20])
def test_recording_that_fails_leaves_none(max_rows: int, caplog: pytest.LogCaptureFixture) -> None:
    """Then every step runs as it is laid out."""
    made = make_steps(FakeModel(), FailingRecorder(RuntimeError("capture invalidated"), max_rows))
    assert made.sizes == []
    assert "capture invalidated" in caplog.text
    assert made.run(SPANS[:1], [-1])[:, 0].tolist() == [7]


def test_recording_without_memory_keeps_the_smallest() -> None:
    made = make_steps(FakeModel(), FailingRecorder(torch.OutOfMemoryError("no memory"), 20))
    assert [size.num_tokens for size in made.sizes] == [16]


def test_a_replay_that_disagrees_leaves_none(caplog: pytest.LogCaptureFixture) -> None:
    class Stale(FakeRecorder):
        def record(self, run: Any) -> Any:
            _, output = super().record(run)
            return (lambda: output.zero_()), output

    assert make_steps(FakeModel(), Stale()).sizes == []
    assert "a replayed step is off by" in caplog.text


def test_recording_that_takes_too_long_keeps_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_CAPTURE_S", -1.0)
    assert len(make_steps(FakeModel(), FakeRecorder()).sizes) == 1


class TorchOperationsBackend(CudaBackend):
    """The CUDA backend on a CPU, with torch's operations in the kernels' places and graphs that are none."""

    def __init__(self, *, batch_invariant: bool = False) -> None:
        super().__init__(CPU, batch_invariant=batch_invariant)
        self.recorder = FakeRecorder()
        self._recorder = self.recorder  # type: ignore[assignment]
        self.operations._in_use.update(TORCH)
        self.operations.replaced["sample_rows"] = "a kernel"

    def _cannot_record(self, what: str, needed: tuple[str, ...]) -> bool:
        return False

    def finish_loading(self, config: ModelConfig, dtype: torch.dtype, *arguments: Any) -> None:
        self._dtype = dtype


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_blocks", [400, 28], ids=["roomy", "tight"])
def test_replies_are_the_same(
    tiny_checkpoint: Path, seed: int, num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks beside decodes, scores, penalties, steps ahead, preemption: recorded or not, as the torch backend does."""
    requests = random_requests(random.Random(seed), 10, 60)

    def drive(**changes: Any) -> Driver:
        return make_driver(
            tiny_checkpoint, num_blocks=num_blocks, block_size=4, max_model_len=110, max_num_seqs=8,
            max_num_batched_tokens=24, **changes,
        )  # fmt: skip

    expected = run_staggered(drive(), requests, seed)
    backend = TorchOperationsBackend()
    monkeypatch.setattr("model.execution.model_loader.make_backend", lambda *_, **__: backend)
    found = run_staggered(drive(run_ahead=seed != 2), requests, seed)
    assert {i: facts(reply) for i, reply in found.items()} == {i: facts(reply) for i, reply in expected.items()}
    assert 16 in backend.recorder.replayed[-200:] or 24 in backend.recorder.replayed[-200:]
