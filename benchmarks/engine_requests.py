"""Requests for an engine that a benchmark steps in its own process, without a server."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator

from model.contract.messages import AddRequest, SequenceOutput
from model.contract.sampling_params import SamplingParams
from model.loop.engine import Engine


def random_prompts(engine: Engine, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Returns prompts of random token ids."""
    generator = random.Random(seed)
    vocab_size = engine.ready.vocab_size
    return [[generator.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


def greedy_request(seq_id: int, prompt: list[int], num_tokens: int, adapter_id: int = 0) -> AddRequest:
    """Returns a request for exactly so many tokens, at temperature 0."""
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return AddRequest(
        seq_ids=(seq_id,), request_id="bench", prompt_ids=prompt, sampling=sampling, adapter_id=adapter_id
    )


def timed_steps(
    engine: Engine, clock: Callable[[], float] = time.perf_counter
) -> Iterator[tuple[float, list[SequenceOutput]]]:
    """Steps the engine until it has no work; yields the seconds and the outputs of each step."""
    while engine.has_work():
        started = clock()
        outputs = engine.step().outputs
        yield clock() - started, outputs


def decode_step_s(engine: Engine, num_seqs: int) -> float:
    """Runs all requests to their end; returns the median seconds of a step in which all `num_seqs` sequences decode."""
    steps = [seconds for seconds, outputs in timed_steps(engine) if len(outputs) == num_seqs]
    if len(steps) < 3:
        raise SystemExit(f"{num_seqs} sequences of this length do not fit into the KV cache together")
    return statistics.median(steps[1:-1])  # the first still includes a prefill, the last frees blocks
