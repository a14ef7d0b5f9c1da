"""A request that is cancelled, or whose client vanishes, frees its blocks with the next step, in every phase."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
from llguidance import LLMatcher

from benchmarks.soak.client import SoakClient
from benchmarks.soak.server import SoakServer
from demo.random_checkpoint import Shape, write
from model.contract.messages import AddRequest
from model.contract.sampling_params import SamplingParams
from prompts.schemas.schema import json_rule, whole_grammar
from tests.faults.conftest import StartServer
from tests.support.engine_driver import Driver, make_driver
from tests.support.grammars import HUNGRY
from tests.support.wire import raw_request

TINY = Shape(num_layers=1, hidden_size=16, num_heads=1, intermediate_size=32, vocab_size=512, seq_length=512)
GRAMMAR = whole_grammar(json_rule({"type": "array", "items": {"type": "integer"}, "minItems": 100}))
HI = [{"role": "user", "content": "hi"}]


def request(seq_ids: tuple[int, ...], num_prompt_tokens: int = 20, **sampling: Any) -> AddRequest:
    params = SamplingParams(**{"max_tokens": 200, "ignore_eos": True, **sampling})
    return AddRequest(seq_ids=seq_ids, request_id="r", prompt_ids=[*range(num_prompt_tokens)], sampling=params)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write(folder, TINY, seed=1)
    return make_driver(folder, max_num_batched_tokens=32, max_num_seqs=4)


def in_its_queue(driver: Driver) -> tuple[int, ...]:
    driver.add([request((seq_id,)) for seq_id in range(6)])
    for _ in range(8):
        driver.step()
    assert driver.stats.num_waiting == 2
    return (4, 5)


def between_chunks(driver: Driver) -> tuple[int, ...]:
    driver.add([request((7,), num_prompt_tokens=100)])
    driver.step()
    assert 0 < driver.stats.num_blocks - driver.stats.num_free_blocks
    return (7,)


def decoding(driver: Driver) -> tuple[int, ...]:
    driver.add([request((8,))])
    for _ in range(5):
        driver.step()
    assert len(driver.replies[8].token_ids) == 5
    return (8,)


def waiting_for_a_sister(driver: Driver) -> tuple[int, ...]:
    """Three choices of a prompt of which the first has computed a part."""
    driver.add([request((10, 11, 12), num_prompt_tokens=100)])
    driver.step()
    return (10, 11, 12)


def compiling(driver: Driver) -> tuple[int, ...]:
    never: Future[LLMatcher] = Future()
    driver.engine._grammars._compiler._compiled["slow"] = never
    driver.add([request((13,), grammar="slow")])
    driver.step()
    assert driver.stats.num_waiting == 1
    return (13,)


def inside_a_grammar(driver: Driver) -> tuple[int, ...]:
    driver.add([request((14,), grammar=GRAMMAR)])
    deadline = time.monotonic() + 20
    while len(driver.replies[14].token_ids) < 3:
        driver.step()
        assert time.monotonic() < deadline
    return (14,)


PHASES = (in_its_queue, between_chunks, decoding, waiting_for_a_sister, compiling, inside_a_grammar)


@pytest.mark.parametrize("phase", PHASES)
def test_an_abort_frees_all_blocks_within_one_step(driver: Driver, phase: Callable[[Driver], tuple[int, ...]]) -> None:
    seq_ids = phase(driver)
    others = driver.replies.keys() - set(seq_ids)
    driver.engine.abort(seq_ids)
    driver.step()
    assert driver.stats.num_waiting == 0
    assert driver.stats.num_running == len(others)
    driver.engine.abort(others)
    driver.step()
    assert driver.stats.num_free_blocks == driver.stats.num_blocks
    assert not driver.engine.has_work()
    assert not driver.engine._runner.grammars._walks
    driver.replies = {}
    driver.assert_forgotten()


# --- the same from outside


def post(server: SoakServer, body: dict[str, Any]) -> socket.socket:
    connection = socket.create_connection((server.url.hostname or "", server.url.port or 0))
    connection.sendall(raw_request("/v1/chat/completions", body))
    return connection


def wait_for(server: SoakServer, name: str, value: float) -> None:
    deadline = time.monotonic() + 10
    while server.metrics().get(name, 0) < value:
        assert time.monotonic() < deadline, (name, server.metrics())
        time.sleep(0.01)


def test_clients_that_leave_in_every_phase(start_server: StartServer) -> None:
    """A server that runs two sequences, 16 tokens a step, and lets one wait."""
    server = start_server("--max-num-seqs", "2", "--max-num-batched-tokens", "16", "--max-queue-requests", "1")
    endless = {"messages": HI, "ignore_eos": True, "max_tokens": 1500}
    running, waiting = "vllm:num_requests_running", "vllm:num_requests_waiting"

    with post(server, {**endless, "messages": [{"role": "user", "content": "word " * 1200}]}):  # prefilling
        wait_for(server, running, 1)
    server.wait_idle(2)

    for stream in (True, False):  # decoding, with another in the queue
        with post(server, {**endless, "stream": stream, "n": 2}):
            wait_for(server, running, 2)
            with post(server, {**endless, "stream": not stream}):
                wait_for(server, waiting, 1)
            deadline = time.monotonic() + 2
            while server.metrics()[waiting]:
                assert time.monotonic() < deadline
        server.wait_idle(2)

    with post(server, {**endless, "stream": True, "structured_outputs": {"regex": "[a-z]{1500}"}}) as connection:
        while b"content" not in connection.recv(4096):
            pass
    server.wait_idle(2)
    hungry = {"type": "json_schema", "json_schema": {"name": "x", "schema": HUNGRY}}
    with httpx.Client(base_url=server.url.geturl(), timeout=20) as http:
        with post(server, {"messages": HI, "response_format": hungry}):
            time.sleep(0.3)  # its grammar is being tried out, and it holds the only place in the queue
            assert http.post("/v1/chat/completions", json={**endless, "max_tokens": 1}).status_code == 429
        time.sleep(0.1)
        assert http.post("/v1/chat/completions", json={**endless, "max_tokens": 1}).status_code == 200
    assert server.settled_footprint().server_fds < 30
    assert "Traceback" not in server.log()


def test_a_client_that_does_not_read_is_cut_off(plain_server: SoakServer) -> None:
    server, log_start = plain_server, len(plain_server.log())
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.url.hostname, server.url.port))
        body = {"messages": HI, "stream": True, "n": 64, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
        connection.sendall(raw_request("/v1/chat/completions", {**body, "max_tokens": 1000}))
        wait_for(server, "vllm:num_requests_running", 32)
        server.wait_idle(20)
    log = server.log()[log_start:]
    assert "reason=abort" in log, "it was served to the end, into nobody's hands"
    assert "Traceback" not in log


async def test_two_hundred_clients_that_vanish(plain_server: SoakServer) -> None:
    server = plain_server
    before = await asyncio.to_thread(server.settled_footprint)
    client = SoakClient(server.url)
    rng = random.Random(2)
    wishes: tuple[dict[str, Any], ...] = (
        {},
        {"n": 4},
        {"messages": [{"role": "user", "content": "word " * 400}]},
        {"response_format": {"type": "json_object"}, "ignore_eos": False},
        {"logprobs": True, "top_logprobs": 3},
    )

    async def vanish() -> None:
        body = {"messages": HI, "stream": rng.random() < 0.5, "ignore_eos": True, "max_tokens": 1000}
        await asyncio.sleep(rng.random() * 0.5)
        await client.send({**body, **rng.choice(wishes)}, leave_after_s=rng.random())

    await asyncio.gather(*(vanish() for _ in range(200)))
    client.close()
    after = await asyncio.to_thread(server.settled_footprint)
    assert after.server_fds <= before.server_fds + 1
    assert server.metrics()["qwen:engine_restarts_total"] == 0
    assert "Traceback" not in server.log()
    reply = await client.send({"messages": HI, "max_tokens": 2})
    client.close()
    assert reply.is_complete, json.dumps(reply.problem)
