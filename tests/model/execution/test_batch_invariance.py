"""On a CPU a reply is the same, bit for bit, whatever the company, the chunks of its prompt, and the guesses."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.scheduling.speculation import RowCosts
from tests.support.engine_driver import Driver, Reply, make_driver
from tests.support.paths import GOLDEN

pytest.importorskip("llvmlite", reason="the kernels need llvmlite")

Kind = tuple[Any, ...]
# Checkpoint, activations, cache, and perhaps windows.
KINDS: list[Kind] = [
    ("first_release_names_bf16", "bfloat16", "auto"),
    ("first_release_names_bf16", "bfloat16", "int8"),
    ("gptq_int4", "bfloat16", "auto"),
    ("gptq_int4_asym_desc_act", "bfloat16", "int8"),
    ("gptq_int8", "bfloat16", "auto"),
    ("ntk_logn_fp32", "float32", "auto"),
    ("ntk_logn_fp32", "bfloat16", "auto", (50, 30, 64)),
]
NUM_TOKENS = 8
PROMPTS = [[(13 * i + 7 * n) % 250 + 1 for i in range(length)] for n, length in enumerate((5, 33, 70, 150))]


class Way(NamedTuple):
    """How requests meet.

    Attributes:
        budget: tokens of a step.
        order: of the prompts, and how many steps pass before the next one comes.
        num_blocks: of the cache.
        turns: how often all is asked for; from the second time on prompts are cached.
    """

    budget: int
    order: list[tuple[int, int]]
    num_blocks: int
    turns: int


def request(seq_id: int, number: int, expected: list[int] | None = None) -> AddRequest:
    """One of the prompts: the even ones greedy, the odd ones drawn from a stream of their own.

    The client expects the right tokens, but for every fourth.
    """
    prediction = [token_id if i % 4 else 1 for i, token_id in enumerate(expected or [], 1)]
    temperature = 0.9 if number % 2 else 0.0
    sampling = SamplingParams(
        max_tokens=NUM_TOKENS, temperature=temperature, top_p=0.9, seed=number, ignore_eos=True, num_logprobs=2
    )
    return AddRequest(
        seq_ids=(seq_id,),
        request_id="same",
        prompt_ids=PROMPTS[number],
        sampling=sampling,
        prediction_ids=prediction,
    )


def driver_for(kind: Kind, budget: int = 512, num_blocks: int = 64, **changes: Any) -> Driver:
    folder, dtype, cache_dtype, *windows = kind
    driver = make_driver(
        GOLDEN / folder,
        num_blocks,
        8,
        dtype=dtype,
        kv_cache_dtype=cache_dtype,
        max_num_batched_tokens=budget,
        max_model_len=160,
        attention_window=windows[0] if windows else None,
        **changes,
    )
    if driver.engine._speculator is not None:
        driver.engine._speculator._costs = RowCosts((1, 32), (1.0, 1.0), 0.0)  # whatever is guessed is tried
    return driver


def as_bits(reply: Reply) -> Any:
    return reply.token_ids, [(entry.logprob, entry.top_ids, entry.top_logprobs) for entry in reply.logprobs]


@cache
def alone(kind: Kind) -> list[Any]:
    driver = driver_for(kind, speculation="off")
    return [as_bits(driver.run([request(0, number)])[0]) for number in range(len(PROMPTS))]


WAYS = st.builds(
    Way,
    budget=st.sampled_from([5, 7, 16, 33, 64, 512]),
    order=st.permutations([0, 1, 2, 3, 1, 2]).flatmap(
        lambda numbers: st.tuples(*(st.tuples(st.just(n), st.integers(0, 3)) for n in numbers)).map(list)
    ),
    num_blocks=st.sampled_from([21, 30, 64]),
    turns=st.integers(1, 2),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
@given(way=WAYS)
@settings(
    max_examples=2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_in_any_company_in_any_chunks_cached_preempted_or_guessed(kind: Kind, way: Way) -> None:
    driver = driver_for(kind, way.budget, way.num_blocks)
    for _ in range(way.turns):
        for seq_id, (number, num_steps) in enumerate(way.order):
            driver.add([request(seq_id, number, alone(kind)[number][0])])
            for _ in range(num_steps):
                driver.step()
        replies = driver.finish()
        for seq_id, (number, _) in enumerate(way.order):
            assert as_bits(replies[seq_id]) == alone(kind)[number], (seq_id, number)
    assert driver.stats.num_accepted_tokens_total > 0
