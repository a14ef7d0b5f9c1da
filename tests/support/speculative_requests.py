"""Mixed requests to an engine that speculates, and their replies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from model.execution.row_costs import MAX_GUESSED_ROWS
from model.scheduling.speculation import RowCosts
from tests.support.engine_driver import Driver, Reply

GRAMMAR = (
    'start: "{\\"name\\": \\"" NAME "\\", \\"delivery_address\\": \\"" NAME "\\"}" ("," | "")\nNAME: /[a-c]{1,9}/\n'
)
# Every guess is worth a try, up to the most rows that are ever measured.
FREE = RowCosts((1, MAX_GUESSED_ROWS), (1.0, 1.0), 0.0)
SETTINGS: dict[str, Any] = {
    "num_blocks": 40, "block_size": 4, "max_model_len": 100, "max_num_seqs": 6, "max_num_batched_tokens": 24
}  # fmt: skip
SAMPLING = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 40),
        "min_tokens": st.sampled_from([0, 0, 9]),
        "temperature": st.sampled_from([0.0, 0.0, 0.2, 1.0]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 1.5, -2.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.5, -1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
        "logit_bias": st.sampled_from([(), ((97, 8.0), (98, 8.0))]),
        "seed": st.sampled_from([None, 7]),
        "num_logprobs": st.sampled_from([None, 2]),
        "stop_token_ids": st.sampled_from([(), (97,), (3, 200)]),
        "ignore_eos": st.booleans(),
        "grammar": st.sampled_from([None, None, None, GRAMMAR]),
    }
)
REQUEST = st.fixed_dictionaries(
    {
        "sampling": SAMPLING,
        "prompt": st.lists(st.sampled_from([[97, 98, 99, 5], [97, 98, 7], [9, 3, 200, 41]]), min_size=1, max_size=8),
        "n": st.sampled_from([1, 1, 3]),
        "is_expected": st.sampled_from([False, True, True]),
        "wait": st.integers(0, 5),
    }
)


def run_requests(
    driver: Driver, requests: list[dict[str, Any]], expected: dict[int, Reply] | None = None
) -> dict[int, Reply]:
    """Adds requests one after another while others run; some expect what came before, but for every seventh token."""
    driver.replies = {}
    for number, request in enumerate(requests):
        seq_ids = tuple(range(10 * number, 10 * number + request["n"]))
        expects = request["is_expected"] and expected is not None
        known = expected[seq_ids[0]].token_ids if expects and expected is not None else []
        driver.add(
            [
                AddRequest(
                    seq_ids=seq_ids,
                    request_id=str(number),
                    prompt_ids=[token_id for part in request["prompt"] for token_id in part],
                    sampling=SamplingParams(**request["sampling"]),
                    caller=str(number % 2),
                    prediction_ids=[token_id if i % 7 else 500 for i, token_id in enumerate(known, 1)],
                )
            ]
        )
        for _ in range(request["wait"]):
            driver.step()
    return driver.finish()


def facts(reply: Reply) -> tuple[Any, ...]:
    return reply.token_ids, reply.finish_reason, reply.stop_token_id, reply.error, len(reply.logprobs)
