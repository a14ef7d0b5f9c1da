"""The same replies on ranks that share each layer as on one, whatever the loop makes of the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from demo.random_checkpoint import write
from model.adapters.low_rank import LowRankUpdate
from model.backends.torch_backend import TorchBackend
from model.contract.engine_config import LoadAdapter
from model.contract.files.linears import QWEN2_LINEARS, linear_shapes
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.distributed.shard import column_parallel, row_parallel
from tests.model.conftest import TINY
from tests.support.adapters import PUBLISHED_TARGETS, QWEN2_TARGETS, adapter_config, factors, write_adapter
from tests.support.engine_driver import Driver
from tests.support.gguf_files import exported
from tests.support.golden import MAX_MODEL_LEN, assert_golden, greedy_requests, read_cases
from tests.support.paths import GOLDEN
from tests.support.quantized_tensors import write_awq
from tests.support.rank_drivers import PLAN, REQUESTS, TIGHT, assert_same, capture_decode, driver_on, run_plan


@pytest.mark.parametrize(
    ("folder", "size"),
    [("plain_theta1e6_fp32", 4), ("first_release_names_bf16", 2), ("gptq_int4", 2), ("gptq_int8", 2)],
)
def test_golden(folder: str, size: int) -> None:
    """Chunks mixed with decodes, steps launched ahead of their tokens; act-order: test_rank_processes."""
    cases = read_cases(folder)
    changes = {"max_model_len": MAX_MODEL_LEN, "max_num_batched_tokens": 80, "run_ahead": True}
    with driver_on(size, GOLDEN / folder, **changes) as driver:
        assert_golden(cases, driver.run(greedy_requests(cases)))


@pytest.fixture(scope="module")
def four_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With four heads, a vocabulary and an MLP that four ranks share unevenly, or in odd parts."""
    folder = tmp_path_factory.mktemp("checkpoints") / "four"
    shape = {"num_heads": 4, "hidden_size": 32, "vocab_size": 303, "intermediate_size": 2 * 4 * 13}
    write(folder, type(TINY)(**{"num_layers": 2, "seq_length": 64, **shape}), seed=3)
    return folder


@pytest.fixture(scope="module")
def drivers(four_heads: Path) -> Iterator[list[Driver]]:
    """Of one and four ranks; so few blocks that sequences are preempted, so few tokens that prompts are cut."""
    with ExitStack() as stack:
        yield [stack.enter_context(driver_on(size, four_heads, **TIGHT)) for size in (1, 4)]


@settings(max_examples=5)
@given(plan=REQUESTS)
def test_any_schedule(drivers: list[Driver], plan: list[dict[str, Any]]) -> None:
    """Prefix cache, preemption, chunks, choices, scores: all ranks see the same step; replies are one rank's."""
    expected, replies = [run_plan(driver, plan) for driver in drivers]
    assert_same(replies, expected)
    assert [reply.num_cached_tokens for reply in replies] == [reply.num_cached_tokens for reply in expected]


@pytest.mark.parametrize("changes", [{"kv_cache_dtype": "int8"}, {"dtype": "bfloat16", "kv_cache_dtype": "float32"}])
def test_other_numbers(four_heads: Path, changes: dict[str, str]) -> None:
    """An int8 cache rounds each head by itself, so it is cut exactly; bfloat16 rounds partial sums, so it is close."""
    plan = [
        {"start": i, "length": 40, "num_choices": 1, "max_tokens": 12, "wait": 1, "repetition_penalty": 1.0,
         "num_prompt_logprobs": 1}
        for i in range(3)
    ]  # fmt: skip
    tolerance = 1e-4 if "dtype" not in changes else 0.1
    replies = []
    for size in (1, 4):
        with driver_on(size, four_heads, **changes) as driver:
            replies.append(run_plan(driver, plan))
    for one, four in zip(*replies, strict=True):
        scores = [[entry.logprob for entry in reply.prompt_logprobs or ()] for reply in (one, four)]
        assert scores[0] == pytest.approx(scores[1], abs=tolerance)
        if "dtype" not in changes:
            assert one.token_ids == four.token_ids


@pytest.mark.parametrize(
    ("targets", "is_recorded"), [(PUBLISHED_TARGETS, False), (QWEN2_TARGETS, False), (PUBLISHED_TARGETS, True)]
)
def test_adapters(
    four_heads: Path, tmp_path: Path, targets: tuple[str, ...], is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed with the base model in one batch, in both spellings: queries, keys and values may be trained apart."""
    if is_recorded:
        monkeypatch.setattr(TorchBackend, "capture_decode", capture_decode)
    config = read_model_config(four_heads)
    folder = write_adapter(tmp_path, adapter_config(targets), factors(config, targets, size=0.3))
    changes = {"max_adapters": 1, "adapters": (LoadAdapter(7, str(folder)),)}
    replies = []
    for size in (1, 4):
        with driver_on(size, four_heads, **changes) as driver:
            for seq_id in range(4):
                sampling = SamplingParams(temperature=0.0, max_tokens=12, num_logprobs=0)
                adapter_id = 7 * (seq_id % 2)
                ids = [9, 3, 200, 41, 41, 7]
                driver.add(
                    [
                        AddRequest(
                            seq_ids=(seq_id,), request_id="r", prompt_ids=ids, sampling=sampling, adapter_id=adapter_id
                        )
                    ]
                )
            replies.append(driver.finish())
            driver.engine.load_adapter(LoadAdapter(8, str(folder)))
            while not (news := driver.engine.take_adapter_news()):
                pass
            assert ("at the start only" in (news[0].error or "")) == (size > 1)
    assert replies[0][0].token_ids != replies[0][1].token_ids, "the adapter changes what is said"
    assert {i: reply.token_ids for i, reply in replies[1].items()} == {i: r.token_ids for i, r in replies[0].items()}


@pytest.mark.parametrize("weight_type", ["q8_0", "bf16"])
def test_gguf(four_heads: Path, tmp_path: Path, weight_type: str) -> None:
    path = exported(four_heads, tmp_path / "model.gguf", weight_type)
    replies = []
    for size in (1, 4):
        with driver_on(size, path) as driver:
            replies.append(run_plan(driver, PLAN))
    assert [reply.token_ids for reply in replies[1]] == [reply.token_ids for reply in replies[0]]


@pytest.mark.parametrize("kind", ["awq", "nf4"])
def test_packed_weights(kind: str, wide_checkpoint: Path, tmp_path: Path) -> None:
    """AWQ's groups, and weights of which each rank packs its part while it loads."""
    folder = write_awq(wide_checkpoint, tmp_path, 32)[0] if kind == "awq" else wide_checkpoint
    changes = {} if kind == "awq" else {"quantization": kind}
    replies = []
    for size in (1, 2):
        with driver_on(size, folder, **changes) as driver:
            replies.append(run_plan(driver, PLAN))
    assert [reply.token_ids for reply in replies[1]] == [reply.token_ids for reply in replies[0]]


def test_windows(four_heads: Path) -> None:
    """In a pool smaller than the longest sequence, whose passed blocks all ranks give back; each stage has its own."""
    changes: dict[str, Any] = {"attention_window": (20, 31), "max_model_len": 160, "max_num_batched_tokens": 8}
    plan = [{**request, "length": 120} for request in PLAN]
    replies = []
    for size, num_stages in ((1, 1), (2, 1), (1, 2)):
        with driver_on(size, four_heads, num_stages=num_stages, num_blocks=24, block_size=4, **changes) as driver:
            replies.append(run_plan(driver, plan))
    assert_same(replies[1], replies[0])
    assert_same(replies[2], replies[0])


def test_each_rank_holds_its_part_alone(four_heads: Path) -> None:
    with driver_on(4, four_heads) as driver:
        four = driver.engine._runner.worker
        assert four.cache.data.shape[2] == 1
        assert four.model.lm_head.shard is not None
        held = four.loaded.weights_bytes
    with driver_on(1, four_heads) as driver:
        whole = driver.engine._runner.worker.loaded.weights_bytes
    norms = 5 * 32 * 4
    assert held == whole + 3 * norms, "but for the norms nothing is held twice"
    plan = plan_memory(read_model_config(four_heads), dtype="float32", num_ranks=4)
    rows = 2 * 32 * 4  # of embedding and output layer: one rank of four has a row less
    assert 4 * plan.weights_bytes == held + rows
    assert plan.kv_block_bytes == four.cache.num_bytes // four.cache.num_blocks


def test_a_rank_s_part_of_an_adapter_is_reckoned(four_heads: Path) -> None:
    config = read_model_config(four_heads)
    num_held = 0
    for name, (num_inputs, num_outputs) in linear_shapes(config).items():
        num_parts = len(QWEN2_LINEARS[name])
        shard = column_parallel(num_inputs, (num_outputs // num_parts,) * num_parts, 0, 4)
        if name.endswith("c_proj"):
            shard = row_parallel(num_inputs, num_outputs, 0, 4)
        assert shard is not None
        parts = LowRankUpdate(0, torch.zeros(16, num_inputs), torch.zeros(num_outputs, 16), 1.0).on(shard)
        num_held += num_parts * parts[0].a.numel() + sum(part.b.numel() for part in parts)
    plan = plan_memory(config, dtype="float32", num_ranks=4)
    assert plan.adapter_bytes(16) == num_held * config.num_layers * 4
