"""Random requests that arrive while others run."""

from __future__ import annotations

import random
from typing import Any

from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from tests.support.engine_driver import Driver, Reply


def random_requests(rng: random.Random, num_requests: int, max_len: int) -> list[AddRequest]:
    requests = []
    for number in range(num_requests):
        prompt = [rng.randrange(300) for _ in range(rng.choice([1, 2, 15, 16, 17, 40, max_len // 2]))]
        sampling = SamplingParams(
            max_tokens=rng.choice([0, 1, 2, 7, 30]),
            temperature=rng.choice([0.0, 0.0, 0.9]),
            top_p=rng.choice([1.0, 0.8]),
            seed=number,
            repetition_penalty=rng.choice([1.0, 1.2]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            presence_penalty=rng.choice([0.0, 0.7]),
            min_tokens=rng.choice([0, 3]),
            num_logprobs=rng.choice([None, 0, 2]),
            num_prompt_logprobs=rng.choice([None, None, 1]),
            stop_token_ids=tuple(rng.sample(range(300), rng.choice([0, 40]))),
        )
        first = 4 * number
        seq_ids = tuple(range(first, first + rng.choice([1, 1, 3])))
        requests.append(
            AddRequest(
                seq_ids=seq_ids,
                request_id=str(number),
                prompt_ids=prompt,
                sampling=sampling,
                priority=rng.choice([0, 0, 1]),
                caller=rng.choice(["a", "a", "b"]),
            )
        )
    return requests


def run_staggered(driver: Driver, requests: list[AddRequest], seed: int) -> dict[int, Reply]:
    """Requests arrive while others run; the driver checks the loop's integrity after the steps."""
    rng = random.Random(seed)
    waiting = list(requests)
    while waiting or driver.engine.has_work():
        for _ in range(rng.choice([0, 0, 1, 3])):
            if waiting:
                driver.add([waiting.pop(0)])
        driver.step()
        driver.check_integrity()
    return driver.finish()


def facts(reply: Reply) -> tuple[Any, ...]:
    return reply.token_ids, reply.finish_reason, reply.stop_token_id, len(reply.logprobs), reply.error
