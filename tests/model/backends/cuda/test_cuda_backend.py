"""The backend as a whole: attention of random mixes, a step's plan, and the engine on it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch

from model.adapters.store import AdapterStore
from model.backends.cpu.rows.angles import cos_sin
from model.backends.cuda.backend import CudaBackend
from model.backends.cuda.steps.angles import Angles, angle_table_bytes
from model.backends.cuda.steps.attention_plan import make_plan
from model.backends.cuda.steps.mixed_steps import CudaSteps
from model.backends.torch_backend import TorchBackend
from model.contract.engine_config import EngineConfig
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.execution.cache_sizing import step_bytes
from model.execution.forward_batch import ForwardBatch, SequenceSpan, inverse_frequencies, query_scale
from model.execution.kv_cache import allocate_kv_cache, kv_cache_block_bytes
from model.execution.worker import Worker
from tests.model.backends.cuda.fakes import CPU, InterpretedBackend
from tests.support.engine_driver import Driver, make_driver
from tests.support.golden import assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN
from tests.support.random_attention import CONFIG, TOLERANCE, RandomSequence, deal_blocks, nan_cache, run_step

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


WARM_UP = Worker._warm_up


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.execution.model_loader.make_backend", lambda *_, **__: InterpretedBackend(CPU))
    monkeypatch.setattr(CudaBackend, "finish_loading", lambda *arguments: None)  # test_self_check.py has it
    monkeypatch.setattr(CudaSteps, "_sizes_to_record", lambda *arguments: [])  # test_mixed_steps.py has them
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
