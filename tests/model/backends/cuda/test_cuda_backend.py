"""The backend as a whole: attention of random mixes, a step's plan, and the engine on it."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch

from model.adapters.store import AdapterStore
from model.backends.base import StepContext
from model.backends.cpu.rows.angles import cos_sin
from model.backends.cuda.backend import CudaBackend
from model.backends.cuda.device_faults import BrokenDeviceError
from model.backends.cuda.kernels.launch import recorded
from model.backends.cuda.kernels.sampling.sample_rows import RowFilters, sample_rows
from model.backends.cuda.operations import KERNELS
from model.backends.cuda.steps import recording
from model.backends.cuda.steps.angles import Angles, angle_table_bytes
from model.backends.cuda.steps.attention_plan import make_plan
from model.backends.cuda.steps.batch_builder import BatchBuilder
from model.backends.cuda.steps.decode_graphs import CudaDecodeGraphs
from model.backends.cuda.steps.mixed_steps import CudaSteps
from model.backends.torch_backend import TorchBackend
from model.contract.engine_config import EngineConfig
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.distributed.ranks import OutOfStepError
from model.execution.cache_sizing import step_bytes
from model.execution.forward_batch import ForwardBatch, SequenceSpan, inverse_frequencies, query_scale
from model.execution.kv_cache import allocate_kv_cache, kv_cache_block_bytes
from model.execution.worker import Worker
from model.sampling.sampling_row import SamplingRow, stream_key
from model.scheduling.sequence import UNKNOWN_TOKEN
from tests.model.architectures.test_golden import assert_golden, greedy_requests, read_cases
from tests.model.backends.test_torch_backend import CONFIG, TOLERANCE, RandomSequence, deal_blocks, nan_cache, run_step
from tests.support.engine_driver import Driver, make_driver
from tests.support.paths import GOLDEN

CPU = torch.device("cpu")
ANGLES = Angles.make(CONFIG, 60, CPU)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the native ones")


@pytest.mark.parametrize("seed", range(3))
def test_random_mixes(seed: int) -> None:
    """Sequences advance by random chunks and decodes in random company until all are done."""
    rng = random.Random(seed)
    dtype = [torch.float32, torch.bfloat16, torch.float16][seed]
    backend = CudaBackend(CPU)
    backend._dtype = dtype
    config = dataclasses.replace(
        CONFIG,
        rotary_dim=rng.choice([16, 8]),
        seq_length=rng.choice([5, 20]),
        attention_windows=[(), (3, 24), (17, 0)][seed],
    )
    block_size = rng.choice([1, 4, 16])
    lengths = [rng.choice([1, 2, rng.randrange(1, 40)]) for _ in range(3)]
    num_blocks = sum(-(-n // block_size) for n in lengths) + 12
    cache = nan_cache(config, num_blocks, block_size, dtype)
    tables = deal_blocks(rng, lengths, block_size, num_blocks)
    sequences = [
        RandomSequence(config, length, rng.choice([1.0, 3.0]), table, dtype)
        for length, table in zip(lengths, tables, strict=True)
    ]
    while alive := [seq for seq in sequences if seq.num_done < seq.length]:
        chunks = [
            (seq, min(seq.length - seq.num_done, rng.choice([1, rng.randrange(4, 30)])))
            for seq in rng.sample(alive, rng.randrange(1, len(alive) + 1))
        ]
        run_step(backend, config, cache, chunks, max(TOLERANCE[dtype], 1e-4))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_cache_as_the_reference_keeps_it(dtype: torch.dtype) -> None:
    """Chunks, then a decode and a chunk behind a prefix: the same integers, scales and outputs."""
    torch.manual_seed(0)
    backends = (TorchBackend(CPU), CudaBackend(CPU))
    backends[1]._dtype = dtype
    caches = [
        allocate_kv_cache(CONFIG, num_blocks=12, block_size=4, dtype=torch.int8, device=CPU) for _ in backends
    ]
    tables = [[3, 1, 2, 7, 5], [0, 4, 6]]
    for spans in (
        [SequenceSpan([0] * 11, 0, 3.0, tables[0], 1), SequenceSpan([0] * 5, 0, 1.0, tables[1], 1)],
        [SequenceSpan([0] * 6, 11, 3.0, tables[0], 1), SequenceSpan([0], 5, 1.0, tables[1], 1)],
    ):
        batch = ForwardBatch.build(spans, CONFIG, 4, CPU)
        qkv = torch.randn(len(batch.token_ids), 3 * CONFIG.hidden_size).to(dtype)
        outs = [
            backend.attention(qkv.clone(), 1, batch, backend.plan_attention(batch, cache))  # type: ignore[attr-defined]
            for backend, cache in zip(backends, caches, strict=True)
        ]
        # A chunk's own keys the reference may attend to before they are rounded.
        torch.testing.assert_close(outs[1].float(), outs[0].float(), rtol=3e-2, atol=3e-2)
        slots = batch.slots
        ours, theirs = caches[1], caches[0]
        assert ours.scales is not None
        assert theirs.scales is not None
        torch.testing.assert_close(ours.scales[1][..., slots], theirs.scales[1][..., slots], rtol=1e-2, atol=1e-6)
        difference = ours.data[1][:, :, slots].int() - theirs.data[1][:, :, slots].int()
        assert difference.abs().max() <= (1 if dtype == torch.float32 else 2)


def test_plan_of_a_mixed_step() -> None:
    cache = allocate_kv_cache(CONFIG, num_blocks=20, block_size=4, dtype=torch.float32, device=CPU)
    spans = [
        SequenceSpan([1], 9, 1.0, [5, 3, 8, 9], 1),
        SequenceSpan([1] * 20, 4, 1.0, [1, 2, 4, 6, 7, 10], 1),
        SequenceSpan([1], 0, 1.0, [11], 1),
    ]
    plan = make_plan(spans, cache, CPU, torch.bfloat16)
    assert plan.decodes is not None
    assert plan.tiles is not None
    assert plan.decodes.rows.tolist() == [0, 21]
    assert plan.decodes.lengths.tolist() == [10, 1]
    assert plan.decodes.table_starts.tolist() == [0, 9]
    assert plan.decodes.table.tolist() == [5, 3, 8, 1, 2, 4, 6, 7, 10, 11]
    assert plan.tiles.block_rows == 64
    assert plan.tiles.records.tolist() == [[1, 4, 20, 3]]
    assert make_plan(spans[:1], cache, CPU, torch.bfloat16).tiles is None
    assert make_plan(spans[1:2], cache, CPU, torch.bfloat16).decodes is None


def test_angles_are_those_of_a_batch() -> None:
    rows, tables = Angles.make(CONFIG, 100, CPU)
    alphas = {CONFIG.rope_alpha(n) for n in range(1, 101)}
    assert set(rows) == alphas
    assert len(alphas) > 2
    assert angle_table_bytes(CONFIG, 100) == sum(table.nbytes for table in tables)
    positions = torch.arange(100)
    assert torch.equal(tables.query_scale, query_scale(positions, CONFIG))
    for alpha, row in rows.items():
        cos, sin = cos_sin(positions.float()[:, None] * inverse_frequencies(CONFIG, alpha))
        assert torch.equal(tables.cos[row], cos)
        assert torch.equal(tables.sin[row], sin)


class FakeRecorder:
    """A graph that runs its work anew at each replay, into the result of the first time."""

    def __init__(self) -> None:
        self.num_marks = 0
        self.num_waits = 0
        self.replayed: list[int] = []

    def record(self, run: Any) -> Any:
        output = run()

        def replay() -> None:
            self.replayed.append(len(output))
            output.copy_(run())

        return replay, output

    def mark(self) -> Any:
        self.num_marks += 1

        def wait() -> None:
            self.num_waits += 1

        return wait


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


class FailingRecorder(FakeRecorder):
    """Cannot record steps of more than some sequences."""

    def __init__(self, error: Exception, max_rows: int) -> None:
        super().__init__()
        self.error = error
        self.max_rows = max_rows

    def record(self, run: Any) -> Any:
        if len(run()) > self.max_rows:
            raise self.error
        return super().record(run)


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


WARM_UP = Worker._warm_up


class InterpretedBackend(CudaBackend):
    """The CUDA backend on a CPU, with graphs that are none."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.recorder = FakeRecorder()
        self._recorder = self.recorder  # type: ignore[assignment]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.execution.model_loader.make_backend", lambda *_, **__: InterpretedBackend(CPU))
    monkeypatch.setattr(CudaBackend, "finish_loading", lambda *arguments: None)  # test_self_check.py has it
    monkeypatch.setattr(CudaSteps, "_sizes_to_record", lambda *arguments: [])  # test_steps.py has them
    monkeypatch.setattr(Worker, "_warm_up", lambda self: None)  # the interpreter has nothing to compile


def drive(folder: Path, **changes: Any) -> Driver:
    return make_driver(folder, num_blocks=40, max_num_seqs=2, **{"max_model_len": 320, **changes})


@pytest.mark.usefixtures("interpreted")
def test_memory_for_steps_is_set_aside(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest step is really run, and what it takes is not given to the cache."""
    ran: list[object] = []

    def measure(self: CudaBackend, run: Any) -> int:
        ran.append(run())
        return 300_000

    monkeypatch.setattr(CudaBackend, "measure_step_bytes", measure)
    monkeypatch.setattr(CudaBackend, "available_memory_bytes", lambda self, share: int(1_000_000 * share))
    config = EngineConfig(
        checkpoint_path=str(tiny_checkpoint),
        dtype="float32",
        max_model_len=20,
        max_num_seqs=2,
        max_num_batched_tokens=24,
        gpu_memory_utilization=0.9,
        block_size=4,
        cuda_graphs=False,
    )
    worker = Worker(config)
    assert len(ran) == 1
    history_bytes = 2 * 20 * (8 + 4)
    block_bytes = kv_cache_block_bytes(worker.model_config, 4, torch.float32)
    assert worker.cache.num_blocks == 2 * 5, "more could never be used"
    table_bytes = angle_table_bytes(worker.model_config, 20) + 3 * 2 * 5 * 4  # block tables of three kinds of steps
    free = 300_000 + history_bytes + table_bytes + 7 * block_bytes + 5
    monkeypatch.setattr(CudaBackend, "available_memory_bytes", lambda self, share: free)
    assert Worker(config).cache.num_blocks == 7
    recorded = msgspec.structs.replace(config, cuda_graphs=True)
    kept = step_bytes(recorded, worker.loaded, worker.limits, 20, samples=True)
    worker.loaded.adapters = cast(AdapterStore, object())
    more = step_bytes(recorded, worker.loaded, worker.limits, 20, samples=True) - kept
    assert more >= 5 * 2 * worker.model_config.vocab_size * 4, "steps with adapters have logits of their own"


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("folder", "num_cases", "max_model_len"),
    [
        ("ntk_logn_fp32", 1, 65),  # three parts of keys, two rotary bases
        pytest.param("gptq_int4_asym_desc_act", 1, 320, marks=pytest.mark.slow),
        pytest.param("gptq_int8", 2, 320, marks=pytest.mark.slow),
        pytest.param("gptq_int4", 2, 320, marks=pytest.mark.slow),
        pytest.param("first_release_names_bf16", 3, 320, marks=pytest.mark.slow),
    ],
)
def test_golden_through_the_engine(folder: str, num_cases: int, max_model_len: int) -> None:
    """Prefill in chunks, decodes in graphs, steps ahead: the published code's first tokens, on the kernels."""
    shortest = sorted(read_cases(folder), key=lambda case: len(case.prompt))[:num_cases]
    cases = [
        dataclasses.replace(case, greedy=case.greedy[:2], greedy_logprobs=case.greedy_logprobs[:2]) for case in shortest
    ]
    driver = drive(GOLDEN / folder, max_num_batched_tokens=100, max_model_len=max_model_len)
    assert_golden(cases, driver.run(greedy_requests(cases)))
    backend: Any = driver.engine._runner.worker.backend
    assert driver.engine._runner.worker.limits.max_steps_ahead == 1
    graphs: Any = driver.engine._runner.worker.graphs
    assert graphs.batch_sizes == [1, 2], "nothing is guessed, so no step has more rows than sequences"
    assert backend.recorder.replayed, "decodes went through graphs"


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_warming_up_changes_no_reply(tiny_checkpoint: Path) -> None:
    requests = [
        AddRequest(
            seq_ids=(0,), request_id="0", prompt_ids=[7] * 5, sampling=SamplingParams(max_tokens=3, temperature=0.0)
        )
    ]
    driver = drive(tiny_checkpoint)
    expected = driver.run(requests)[0].token_ids
    with torch.inference_mode():
        WARM_UP(driver.engine._runner.worker)
    assert drive(tiny_checkpoint).run(requests)[0].token_ids == expected


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_sampling_on_the_device(tiny_checkpoint: Path) -> None:
    """Seeds repeat in any company, with and without graphs and steps ahead; penalties see tokens the host has not."""
    requests = [
        AddRequest(
            seq_ids=(number,),
            request_id=str(number),
            prompt_ids=[3, 4, 5],
            sampling=SamplingParams(
                max_tokens=3, temperature=1.2, top_p=0.9, seed=number, repetition_penalty=1.5, presence_penalty=0.5,
                num_logprobs=1,
            ),
        )
        for number in range(2)
    ]  # fmt: skip
    together = drive(tiny_checkpoint).run(requests)
    plain = drive(tiny_checkpoint, cuda_graphs=False, run_ahead=False)
    for request in requests:
        (seq_id,) = request.seq_ids
        alone = plain.run([request])[seq_id]
        assert alone.token_ids == together[seq_id].token_ids
        assert len(alone.logprobs) == 3


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


def test_batch_invariant_steps_have_tiles_and_parts_of_one_size() -> None:
    backend = CudaBackend(CPU, batch_invariant=True)
    weight, x = torch.randn(70, 48).bfloat16(), torch.randn(19, 48).bfloat16()
    linear = backend.prepare_linear(weight, None, wide_results=True)
    together = linear(x)
    assert together.dtype == torch.float32
    assert torch.equal(linear(x[7:8]), together[7:8])
    cache = allocate_kv_cache(CONFIG, num_blocks=80, block_size=16, dtype=torch.float32, device=CPU)
    spans = [SequenceSpan([0], length - 1, 1.0, list(range(80)), 1) for length in (5, 1200)]
    chunks = [SequenceSpan([0] * length, 0, 1.0, list(range(80)), 1) for length in (3, 200)]
    plans = [
        backend.plan_attention(ForwardBatch.build(step, CONFIG, 16, CPU), cache)
        for step in ([spans[0], chunks[0]], [*spans, *spans, *chunks])
    ]
    assert plans[0].num_splits == plans[1].num_splits
    assert plans[0].tiles is not None and plans[1].tiles is not None
    assert plans[0].tiles.block_rows == plans[1].tiles.block_rows
