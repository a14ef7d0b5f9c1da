"""The numbers of the published model code, to the digit, however the loop cuts the work up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from tests.support.engine_driver import LoadedModel
from tests.support.golden import (
    FOLDERS,
    Case,
    assert_golden,
    driver_for,
    greedy_requests,
    read_cases,
)
from tests.support.paths import GOLDEN

LOGITS_TOLERANCE = 5e-5  # measured: 1.7e-5 at most


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cases(folder: str) -> list[Case]:
    return read_cases(folder)


def test_logits(folder: str, cases: list[Case]) -> None:
    """Prompt positions and the one after the last greedy token, straight from the model."""
    model = LoadedModel(GOLDEN / folder)
    for case in cases:
        logits = model.logits([*case.prompt, *case.greedy], len(case.prompt))
        torch.testing.assert_close(logits[case.logit_positions], case.logits, rtol=0, atol=LOGITS_TOLERANCE)
        torch.testing.assert_close(logits[-1], case.final_logits, rtol=0, atol=LOGITS_TOLERANCE)
        first = len(case.prompt) - 1
        assert logits[first:-1].argmax(-1).tolist() == case.greedy


def test_one_by_one(folder: str, cases: list[Case]) -> None:
    driver = driver_for(folder)
    replies = {i: driver.run(greedy_requests([case], i))[i] for i, case in enumerate(cases)}
    assert_golden(cases, replies)


@pytest.mark.parametrize("block_size", [1, 64])
def test_all_at_once(folder: str, cases: list[Case], block_size: int) -> None:
    driver = driver_for(folder, block_size=block_size, num_blocks=-(-1600 // block_size) + 10)
    assert_golden(cases, driver.run(greedy_requests(cases)))


@pytest.mark.parametrize("max_num_batched_tokens", [1, 32])
def test_prefill_in_chunks(folder: str, cases: list[Case], max_num_batched_tokens: int) -> None:
    if max_num_batched_tokens == 1:
        cases = cases[:2]
    driver = driver_for(folder, max_num_batched_tokens=max_num_batched_tokens)
    assert_golden(cases, driver.run(greedy_requests(cases)))
    assert driver.stats.num_step_tokens <= max_num_batched_tokens


def test_warm_prefix_cache(folder: str, cases: list[Case]) -> None:
    driver = driver_for(folder)
    assert_golden(cases, driver.run(greedy_requests(cases)))
    replies = driver.run(greedy_requests(cases, 100))
    assert_golden(cases, replies)
    cached = [reply.num_cached_tokens for _, reply in sorted(replies.items())]
    assert cached == [(len(case.prompt) - 1) // 16 * 16 for case in cases]


def test_prompts_that_start_alike_but_have_another_alpha() -> None:
    """Keys are cached after rotation: the start of a prompt of another alpha must not be taken from the cache."""
    cases = read_cases("ntk_logn_fp32")
    driver = driver_for("ntk_logn_fp32")
    for number, case in enumerate(cases):
        driver.run(
            [
                AddRequest(
                    seq_ids=(number,),
                    request_id="warm",
                    prompt_ids=case.prompt[:length],
                    sampling=SamplingParams(max_tokens=1, temperature=0.0),
                )
                for number, length in enumerate((60, 64, 65, 120, 128, 129, 200), 1000 * (number + 1))
                if length < len(case.prompt)
            ]
        )
    replies = driver.run(greedy_requests(cases))
    assert_golden(cases, replies)
    assert sum(reply.num_cached_tokens or 0 for reply in replies.values()) > 0, "equal alphas do share"


def test_without_prefix_caching(folder: str, cases: list[Case]) -> None:
    driver = driver_for(folder, enable_prefix_caching=False)
    driver.run(greedy_requests(cases[:2]))
    replies = driver.run(greedy_requests(cases, 100))
    assert_golden(cases, replies)
    assert all(reply.num_cached_tokens == 0 for reply in replies.values())


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preempted(folder: str, cases: list[Case], enable_prefix_caching: bool) -> None:
    """A pool that the longest case just fits into; what is preempted comes back with its alpha."""
    longest = max(len(case.prompt) + len(case.greedy) for case in cases)
    driver = driver_for(
        folder,
        block_size=4,
        num_blocks=-(-longest // 4) + 1,
        max_model_len=longest,
        enable_prefix_caching=enable_prefix_caching,
        max_num_batched_tokens=64,
    )
    if len(cases) < 5:
        cases = cases * 2
    assert_golden(cases, driver.run(greedy_requests(cases)))
    assert driver.stats.num_preemptions_total > 0


def test_fragmented_cache(folder: str, cases: list[Case]) -> None:
    """No two blocks of a sequence lie next to each other."""
    driver = driver_for(folder, num_blocks=512, block_size=8)
    with driver.fragmented():
        assert_golden(cases, driver.run(greedy_requests(cases)))


def test_in_a_crowd(folder: str, cases: list[Case]) -> None:
    """Cases arrive one a step among sampled, penalised and scored neighbours, some of which are aborted."""
    driver = driver_for(folder, max_num_batched_tokens=48)
    for i, request in enumerate(greedy_requests(cases)):
        driver.add([request])
        driver.add(_neighbours(100 + 10 * i, cases[-1 - i]))
        driver.step()
        driver.engine.abort([100 + 10 * i])
    replies = driver.finish()
    assert_golden(cases, {seq_id: reply for seq_id, reply in replies.items() if seq_id < 100})


def _neighbours(first_seq_id: int, case: Case) -> Iterator[AddRequest]:
    samplings = [
        SamplingParams(max_tokens=5, temperature=1.0, seed=1),
        SamplingParams(max_tokens=4, temperature=1.5, top_p=0.9, repetition_penalty=1.3, seed=1),
        SamplingParams(max_tokens=0, num_prompt_logprobs=1),
        SamplingParams(max_tokens=3, temperature=0.0, logit_bias=((3, 50.0),), frequency_penalty=1.0, num_logprobs=2),
    ]
    for i, sampling in enumerate(samplings):
        yield AddRequest(
            seq_ids=(first_seq_id + i,), request_id="crowd", prompt_ids=case.prompt[:70], sampling=sampling
        )


@pytest.mark.parametrize(
    ("folder", "dtype", "bound"),
    [
        ("ntk_logn_fp32", torch.bfloat16, 0.9),
        ("plain_theta1e6_fp32", torch.bfloat16, 0.9),
        ("first_release_names_bf16", torch.bfloat16, 0.9),
        ("ntk_logn_fp32", torch.float16, 0.98),
    ],
)
def test_top_1_agreement_of_half_precision(folder: str, dtype: torch.dtype, bound: float) -> None:
    """Teacher-forced along the float32 greedy reply: how often the likeliest token is the same."""
    model = LoadedModel(GOLDEN / folder, dtype)
    num_equal = num_tokens = 0
    for case in read_cases(folder):
        logits = model.logits([*case.prompt, *case.greedy], len(case.prompt))
        likeliest = logits[len(case.prompt) - 1 : -1].argmax(-1)
        num_equal += int((likeliest == torch.tensor(case.greedy)).sum())
        num_tokens += len(case.greedy)
    print(f"{folder} {dtype}: top-1 agreement {num_equal}/{num_tokens} = {num_equal / num_tokens:.4f}")
    assert num_equal / num_tokens >= bound


def test_engine_in_bfloat16(folder: str, cases: list[Case]) -> None:
    """The engine's bfloat16 path: decodes, chunks and packed weights; near the float32 log-probabilities."""
    driver = driver_for(folder, dtype="bfloat16", max_num_batched_tokens=64)
    replies = driver.run(greedy_requests(cases))
    differences = [
        abs(entry.logprob - expected)
        for case, reply in zip(cases, replies.values(), strict=True)
        for entry, token_id, golden_id, expected in zip(
            reply.logprobs, reply.token_ids, case.greedy, case.greedy_logprobs, strict=True
        )
        if token_id == golden_id
    ]
    assert len(differences) > 10
    assert sorted(differences)[len(differences) // 2] < 0.1
