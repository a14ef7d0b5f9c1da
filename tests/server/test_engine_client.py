"""Engines that misbehave: every request ends, and someone is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from model.engine_config import EngineConfig
from model.errors import EngineUnavailableError
from model.sampling_params import SamplingParams
from server import engine_supervisor
from server.engine_client import EngineClient, Prompt
from server.engine_link import child_environment
from server.engine_supervisor import EngineState

PROMPT = Prompt([1, 2], SamplingParams(max_tokens=5))


@pytest.fixture(autouse=True)
def _quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_supervisor, "_FIRST_BACKOFF_S", 0.01)


def client_of(mode: str, told: list[str], **settings: float) -> EngineClient:
    config = EngineConfig(checkpoint_path="none", device=mode)
    return EngineClient(config, on_fatal=told.append, module="tests.support.bad_engine", **settings)  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("mode", "words", "restarts"),
    [
        ("silent", "no sign of life for 0.3 s", 0),
        ("refuses", "no such checkpoint", 0),
        ("crashes", "exit status 3", engine_supervisor.MAX_FAILURES_IN_A_ROW),
    ],
)
async def test_hopeless_engines_are_given_up(mode: str, words: str, restarts: int) -> None:
    told: list[str] = []
    client = client_of(mode, told, start_timeout_s=0.3)
    await client.start()
    assert client.state is EngineState.LOADING
    with pytest.raises(EngineUnavailableError, match="loading"):
        client.submit([PROMPT], request_id="r")
    await until(lambda: told)
    assert words in told[0]
    assert client.num_restarts == restarts
    assert client.state is EngineState.DEAD
    with pytest.raises(EngineUnavailableError):
        client.require_ready()
    await client.stop()


async def test_a_message_that_cannot_be_read_is_a_death() -> None:
    client = client_of("garbage", [])
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    handle = client.submit([PROMPT], request_id="r")
    with pytest.raises(EngineUnavailableError, match="send it again"):
        await asyncio.wait_for(handle.next(), 10)
    assert client.num_open_requests == 0
    await until(lambda: client.num_restarts == 1)
    await client.stop()


async def test_what_arrived_before_a_death_is_delivered_before_the_error() -> None:
    client = client_of("half", [])
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    handle = client.submit([PROMPT], n=2, request_id="r")
    seen = []
    with pytest.raises(EngineUnavailableError):
        while True:
            seen += [(index, output.token_ids) for index, output in await asyncio.wait_for(handle.next(), 10)]
    assert seen == [(0, [65]), (1, [66])]
    await client.stop()


async def test_stopping_ends_open_requests() -> None:
    client = client_of("garbage", [])
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    client.drain()
    assert client.state is EngineState.DRAINING
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        client.submit([PROMPT], request_id="r")
    await client.stop()
    assert client.state is EngineState.DEAD


def test_the_engine_gets_an_allocator_and_no_keys() -> None:
    child = child_environment({"QWEN_SERVER_API_KEY": "k", "PATH": "p", "MALLOC_TOP_PAD_": "1"})
    assert "QWEN_SERVER_API_KEY" not in child
    assert (child["PATH"], child["MALLOC_TOP_PAD_"]) == ("p", "1")
    assert int(child["MALLOC_MMAP_THRESHOLD_"]) == 1 << 30
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
