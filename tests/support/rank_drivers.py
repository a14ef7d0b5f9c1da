"""One engine on one rank and the same on several, given the same requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from model.backends.base import StepContext
from model.contract.engine_config import EngineConfig
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from tests.support.engine_driver import Driver, Reply
from tests.support.thread_ranks import engine_on_threads


@contextmanager
def driver_on(
    size: int, folder: Path, *, num_stages: int = 1, num_blocks: int = 256, block_size: int = 16, **changes: Any
) -> Iterator[Driver]:
    """An engine of so many ranks in each of so many stages, with so many blocks."""
    plan = plan_memory(
        read_model_config(folder),
        dtype="float32",
        kv_cache_dtype=changes.get("kv_cache_dtype", "auto"),
        block_size=block_size,
        num_ranks=size,
        num_stages=num_stages,
    )
    made: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_threads": 1, "seed": 0, "block_size": block_size}
    made |= {"kv_cache_memory_bytes": num_blocks * plan.kv_block_bytes}
    made |= {"tensor_parallel_size": size, "pipeline_parallel_size": num_stages, **changes}
    with engine_on_threads(EngineConfig(checkpoint_path=str(folder), **made)) as engine:
        yield Driver(engine)


TIGHT: dict[str, Any] = {"num_blocks": 14, "max_model_len": 160, "max_num_batched_tokens": 24, "max_num_seqs": 5}
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "start": st.integers(1, 3),
            "length": st.sampled_from([1, 5, 17, 40, 90]),
            "num_choices": st.sampled_from([1, 1, 3]),
            "max_tokens": st.sampled_from([0, 1, 6, 30]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "num_prompt_logprobs": st.sampled_from([None, None, 1]),
            "wait": st.integers(0, 4),
        }
    ),
    min_size=1,
    max_size=7,
)


def run_plan(driver: Driver, plan: list[dict[str, Any]]) -> list[Reply]:
    """Adds each request some steps after the one before."""
    num_made = 0
    for item in plan:
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=item["max_tokens"],
            repetition_penalty=item["repetition_penalty"],
            num_prompt_logprobs=item["num_prompt_logprobs"],
            num_logprobs=0,
        )
        seq_ids = tuple(range(num_made, num_made + item["num_choices"]))
        num_made += len(seq_ids)
        prompt = [(item["start"] * 37 + i * i) % 303 for i in range(item["length"])]
        driver.add([AddRequest(seq_ids=seq_ids, request_id="r", prompt_ids=prompt, sampling=sampling)])
        for _ in range(item["wait"]):
            driver.step()
    return [reply for _, reply in sorted(driver.finish().items())]


def assert_same(replies: list[Reply], expected: list[Reply]) -> None:
    """The same tokens and ends, and as nearly the same scores as sums in another order allow."""
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in expected]
    for reply, single in zip(replies, expected, strict=True):
        assert (reply.finish_reason, reply.stop_token_id) == (single.finish_reason, single.stop_token_id)
        for ours, theirs in zip(
            [*reply.logprobs, *(reply.prompt_logprobs or ())],
            [*single.logprobs, *(single.prompt_logprobs or ())],
            strict=True,
        ):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert ours.rank == theirs.rank


PLAN = [
    {"start": i, "length": 30, "num_choices": 1, "max_tokens": 10, "wait": 1, "repetition_penalty": 1.0,
     "num_prompt_logprobs": None}
    for i in (1, 2)
]  # fmt: skip


class Recorded:
    """Decode steps as a GPU records them: without adapters or with them, whatever the rows have."""

    max_num_rows = 16

    def __init__(self, run: Callable[[list[SequenceSpan]], torch.Tensor]) -> None:
        self._run = run

    def run(self, spans: list[SequenceSpan], sources: list[int]) -> torch.Tensor:
        return self._run(spans)


def capture_decode(backend: Any, context: StepContext, *, with_adapters: bool = False) -> Recorded:
    def run(spans: list[SequenceSpan]) -> torch.Tensor:
        plan = backend.plan_adapters(spans) if with_adapters else None
        batch = ForwardBatch.build(spans, context.config, context.cache.block_size, backend.device, plan)
        return context.logits(context.forward(batch))

    return Recorded(run)
