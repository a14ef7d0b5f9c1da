"""The same replies where layers are dealt out to stages as on one rank, with steps under way on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.random_checkpoint import write
from model.backends.torch_backend import TorchBackend
from model.contract.engine_config import LoadAdapter
from model.contract.errors import ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import AddRequest
from model.contract.parallel import Placement, layers_of_stages
from model.contract.sampling_params import SamplingParams
from model.loop.step_guard import STEP_FAILED
from tests.model.conftest import TINY
from tests.support.adapters import adapter_config, factors, write_adapter
from tests.support.engine_driver import Driver
from tests.support.gguf_files import exported
from tests.support.golden import MAX_MODEL_LEN, assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN
from tests.support.rank_drivers import PLAN, REQUESTS, TIGHT, assert_same, capture_decode, driver_on, run_plan
from tests.support.speculative_requests import FREE, REQUEST, SETTINGS, facts, run_requests


@pytest.mark.parametrize(
    ("folder", "size", "num_stages"),
    [("plain_theta1e6_fp32", 1, 3), ("first_release_names_bf16", 1, 2), ("gptq_int4", 1, 2), ("ntk_logn_fp32", 2, 2)],
)
def test_golden(folder: str, size: int, num_stages: int) -> None:
    cases = read_cases(folder)
    changes = {"max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": 80}
    with driver_on(size, GOLDEN / folder, num_stages=num_stages, **changes) as driver:
        assert_golden(cases, driver.run(greedy_requests(cases)))


@pytest.fixture(scope="module")
def three_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With so large a vocabulary that the stage without embedding and output layer would take all three layers."""
    folder = tmp_path_factory.mktemp("checkpoints") / "three"
    shape = {"num_layers": 3, "num_heads": 2, "hidden_size": 32, "vocab_size": 303, "intermediate_size": 2 * 2 * 13}
    write(folder, type(TINY)(**{"seq_length": 64, **shape}), seed=3)
    return folder


@pytest.fixture(scope="module")
def drivers(three_layers: Path) -> Iterator[list[Driver]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(driver_on(size, three_layers, num_stages=num_stages, **TIGHT))
            for size, num_stages in ((1, 1), (1, 3), (2, 2))
        ]


@settings(max_examples=5)
@given(plan=REQUESTS)
def test_any_schedule(drivers: list[Driver], plan: list[dict[str, Any]]) -> None:
    """Prefix cache, preemption, chunks, choices, scores; on three stages, and on two whose ranks share each layer.

    Stages alone change no bit; ranks that share a layer add its parts up in another order.
    """
    expected, *others = [run_plan(driver, plan) for driver in drivers]
    for replies in others:
        assert_same(replies, expected)
    on_one_rank, on_stages = ([(reply.logprobs, reply.prompt_logprobs) for reply in r] for r in (expected, others[0]))
    assert on_stages == on_one_rank


@pytest.fixture(scope="module")
def speculating(tiny_checkpoint: Path) -> Iterator[list[Driver]]:
    with ExitStack() as stack:
        made = [stack.enter_context(driver_on(1, tiny_checkpoint, num_stages=n, **SETTINGS)) for n in (1, 2)]
        assert made[1].engine._speculator is not None
        made[1].engine._speculator._costs = FREE
        yield made


@settings(max_examples=6)
@given(requests=st.lists(REQUEST, min_size=2, max_size=6))
def test_any_sampling(speculating: list[Driver], requests: list[dict[str, Any]]) -> None:
    """Grammars, penalties, seeds, stops, and guesses that are tried by all stages at once."""
    one, two = speculating
    expected = run_requests(one, requests)
    found = run_requests(two, requests, expected)
    assert {i: facts(reply) for i, reply in found.items()} == {i: facts(reply) for i, reply in expected.items()}


def test_some_guesses_were_right(speculating: list[Driver]) -> None:
    assert speculating[1].stats.num_accepted_tokens_total > 0


def request(seq_id: int, num_tokens: int = 20, length: int = 5, **sampling: Any) -> AddRequest:
    prompt = [(seq_id * 37 + i * i) % 300 for i in range(length)]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, **sampling)
    return AddRequest(seq_ids=(seq_id,), request_id=str(seq_id), prompt_ids=prompt, sampling=params)


def test_no_stage_idles_under_load(three_layers: Path) -> None:
    """While one step is planned, the other stages have one each, of sequences that are in no other."""
    with driver_on(1, three_layers, num_stages=3, speculation="off") as driver:
        engine = driver.engine
        driver.add([request(i) for i in range(7)])
        sizes = []
        while engine.has_work():
            driver.step()
            steps = [[entry.seq_id for entry in step.batch] for step in engine._steps.in_flight]
            seq_ids = [seq_id for step in steps for seq_id in step]
            assert len(seq_ids) == len(set(seq_ids))
            sizes.append([len(step) for step in steps])
    assert sizes[0] == [3], "of those that wait each step admits its part"
    under_load = sizes[8:-12]
    assert len(under_load) > 20
    assert all(len(size) == 2 and max(size) <= 3 for size in under_load)


def test_a_long_prompt_is_on_all_stages_at_once(three_layers: Path) -> None:
    with driver_on(1, three_layers, num_stages=3, max_num_batched_tokens=16) as driver:
        driver.add([request(0, 1, length=100)])
        for _ in range(4):
            driver.step()
        assert [step.batch.entries[0].start for step in driver.engine._steps.in_flight] == [32, 48]
        driver.finish()


def test_who_leaves_while_a_stage_is_busy_with_it_is_forgotten(three_layers: Path) -> None:
    with driver_on(1, three_layers, num_stages=3) as driver:
        driver.add([request(i, repetition_penalty=1.2) for i in range(4)])
        for _ in range(9):
            driver.step()
        in_flight = [entry.seq_id for step in driver.engine._steps.in_flight for entry in step.batch]
        driver.engine.abort(in_flight)
        driver.finish()


def test_a_step_whose_tokens_cannot_be_sampled_ends_its_sequences_alone(
    three_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then other steps are under way; but where all of them fail, the engine does."""
    with driver_on(1, three_layers, num_stages=2) as driver:
        expected = driver.run([request(i) for i in range(4)])
        sampler, failing = driver.engine._runner._sampler, [5]
        launch = sampler.launch

        def fail(*arguments: Any) -> Any:
            failing[0] -= 1
            if failing[0] == 0:
                raise RuntimeError("no such penalty")
            return launch(*arguments)

        monkeypatch.setattr(sampler, "launch", fail)
        replies = driver.run([request(i) for i in range(4)])
        ended = {i: reply.error for i, reply in replies.items() if reply.error}
        assert 1 <= len(ended) <= 2 and set(ended.values()) == {STEP_FAILED}
        assert all(replies[i].token_ids == expected[i].token_ids for i in replies.keys() - ended)
        monkeypatch.setattr(sampler, "launch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            driver.run([request(i) for i in range(9)])


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_cache_dtype": "int8"},
        {"quantization": "int8"},
        {"run_ahead": False},
        {"attention_window": (7, 20, 5), "num_blocks": 24, "max_num_batched_tokens": 16},
    ],
)
def test_other_ways(three_layers: Path, changes: dict[str, Any]) -> None:
    replies = []
    for num_stages in (1, 2):
        with driver_on(1, three_layers, num_stages=num_stages, **changes) as driver:
            replies.append(run_plan(driver, PLAN))
    assert_same(*replies)


def test_as_on_a_gpu(three_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device has a queue the leader launches its part at once, and every stage replays decodes."""
    monkeypatch.setattr(TorchBackend, "runs_ahead", True)
    monkeypatch.setattr(TorchBackend, "capture_decode", capture_decode)
    with driver_on(1, three_layers, run_ahead=False) as driver:
        expected = run_plan(driver, PLAN)
    with driver_on(1, three_layers, num_stages=3) as driver:
        assert driver.engine._speculator is None
        assert_same(run_plan(driver, PLAN), expected)


def test_gguf(three_layers: Path, tmp_path: Path) -> None:
    path = exported(three_layers, tmp_path / "model.gguf", "q8_0")
    replies, held = [], []
    for num_stages in (1, 3):
        with driver_on(1, path, num_stages=num_stages) as driver:
            replies.append(run_plan(driver, PLAN))
            held.append(driver.engine._runner.worker.loaded.weights_bytes)
    assert_same(*replies)
    assert held[0] == held[1]


def test_adapters(three_layers: Path, tmp_path: Path) -> None:
    """Also one that was trained with an embedding, which the first stage has, and an output layer, which the last."""
    config = read_model_config(three_layers)
    tensors = factors(config, size=0.3)
    plain = write_adapter(tmp_path / "plain", adapter_config(), tensors)
    saved = {f"base_model.model.{name}.weight": torch.randn(303, 32) for name in ("transformer.wte", "lm_head")}
    whole = write_adapter(tmp_path / "whole", adapter_config(modules_to_save=["wte", "lm_head"]), {**tensors, **saved})
    changes = {"max_adapters": 2, "adapters": (LoadAdapter(7, str(plain)), LoadAdapter(9, str(whole)))}
    replies = []
    for num_stages in (1, 3):
        with driver_on(1, three_layers, num_stages=num_stages, **changes) as driver:
            for seq_id, adapter_id in enumerate((0, 7, 9, 7, 0)):
                asked = request(seq_id, num_logprobs=0)
                driver.add([type(asked)(**{name: getattr(asked, name) for name in asked.__struct_fields__}
                                        | {"prompt_ids": [9, 3, 200, 41], "adapter_id": adapter_id})])  # fmt: skip
            replies.append([reply for _, reply in sorted(driver.finish().items())])
    assert_same(*replies)
    assert len({tuple(reply.token_ids) for reply in replies[0]}) == 3


def test_an_adapter_may_leave_while_a_stage_is_busy_with_it(three_layers: Path, tmp_path: Path) -> None:
    """With its last user, whose step, with a prompt and scores, the last stage has not begun."""
    config = read_model_config(three_layers)
    tensors = factors(config, size=0.3)
    saved = {f"base_model.model.{name}.weight": torch.randn(303, 32) for name in ("transformer.wte", "lm_head")}
    folder = write_adapter(tmp_path / "a", adapter_config(modules_to_save=["wte", "lm_head"]), {**tensors, **saved})
    with driver_on(1, three_layers, num_stages=3, max_adapters=1, adapters=(LoadAdapter(7, str(folder)),)) as driver:
        expected = driver.run([request(0)])[0].token_ids
        leaving = msgspec.structs.replace(request(1, length=9, num_prompt_logprobs=1), adapter_id=7)
        driver.add([leaving, request(0)])
        driver.step()
        assert 1 in {entry.seq_id for step in driver.engine._steps.in_flight for entry in step.batch}
        driver.engine.unload_adapter(7)
        driver.engine.abort([1])
        assert driver.finish()[0].token_ids == expected


def test_each_stage_holds_its_layers_alone(three_layers: Path) -> None:
    config = read_model_config(three_layers)
    with driver_on(1, three_layers, num_stages=3) as driver:
        worker = driver.engine._runner.worker
        assert set(worker.model.transformer.h) == {"2"} and not hasattr(worker.model.transformer, "wte")
        assert worker.cache.data.shape[0] == 1
        held, num_blocks = worker.loaded.weights_bytes, worker.cache.num_blocks
        assert worker.kv_cache_bytes == 3 * worker.cache.num_bytes
    assert held == plan_memory(config, dtype="float32").weights_bytes
    assert num_blocks == 256
    plan = plan_memory(config, dtype="float32", num_stages=3)
    embedding = 303 * 32 * 4
    layer = (held - 2 * embedding - 32 * 4) // 3
    assert plan.weights_bytes == embedding + layer + 32 * 4, "the last has the final norm too"
    assert 3 * plan.kv_block_bytes == plan_memory(config, dtype="float32").kv_block_bytes


@pytest.mark.parametrize(
    ("embedding", "layers", "head", "num_stages", "expected"),
    [
        (0, [1] * 7, 0, 3, [2, 3, 2]),
        (14, [10] * 80, 14, 4, [19, 21, 21, 19]),
        (3, [1] * 4, 3, 3, [1, 2, 1]),
        (100, [1] * 4, 1, 3, [1, 1, 2]),
        (0, [5, 1, 1, 1, 1, 1], 0, 2, [1, 5]),
        (1, [1, 1], 1, 1, [2]),
    ],
)
def test_layers_are_dealt_out_by_weight(
    embedding: int, layers: list[int], head: int, num_stages: int, expected: list[int]
) -> None:
    stages = layers_of_stages(embedding, layers, head, num_stages)
    assert [len(stage) for stage in stages] == expected
    assert [i for stage in stages for i in stage] == list(range(len(layers)))


def test_places() -> None:
    """Number 0 leads, from the last stage; a step goes from neighbour to neighbour until it is there."""
    places = [Placement.of(number, 2, 3) for number in range(6)]
    assert [(place.stage, place.rank) for place in places] == [(2, 0), (2, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert [place.number for place in places] == list(range(6))
    assert [place.neighbour(1) for place in places[2:]] == [4, 5, 0, 1]
    assert [place.is_leader for place in places] == [True, *[False] * 5]


def test_more_stages_than_layers_are_refused(three_layers: Path) -> None:
    with pytest.raises(ConfigError, match="--pipeline-parallel-size 4: this checkpoint has only 3 layers"):
        plan_memory(read_model_config(three_layers), num_stages=4)
