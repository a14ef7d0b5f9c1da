"""Engines that misbehave: every request ends, and someone is told."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from model.contract.engine_config import EngineConfig
from model.contract.errors import EngineUnavailableError
from model.contract.log_text import describe_exit
from model.contract.messages import SequenceOutput
from model.contract.sampling_params import SamplingParams
from server.engine import supervisor as engine_supervisor
from server.engine.client import EngineClient, Prompt
from server.engine.handle import RequestHandle
from server.engine.open_requests import MAX_ATTEMPTS
from server.engine.process import child_environment
from server.engine.supervisor import EngineState
from server.gates.callers import Caller

PROMPT = Prompt([1, 2], SamplingParams(max_tokens=5))


@pytest.fixture(autouse=True)
def _quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_supervisor, "_FIRST_BACKOFF_S", 0.01)


def client_of(mode: str, told: list[str], checkpoint: str = "none", **settings: float) -> EngineClient:
    config = EngineConfig(checkpoint_path=checkpoint, device=mode)
    return EngineClient(config, on_fatal=told.append, module="tests.support.bad_engine", **settings)  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_engine_may_ask_for_another_first_start(tmp_path: Path) -> None:
    """What broke the device is noted; the next start leaves it out."""
    told: list[str] = []
    client = client_of("again:2", told, str(tmp_path / "lives"))
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    assert client.num_restarts == 2
    assert not told
    await client.stop()


async def test_an_engine_that_asks_for_ever_is_given_up(tmp_path: Path) -> None:
    told: list[str] = []
    client = client_of("again:99", told, str(tmp_path / "lives"))
    await client.start()
    await until(lambda: told)
    assert "a kernel broke the device; that was failure 6 in a row" in told[0]


@pytest.mark.parametrize(
    ("mode", "words", "restarts"),
    [
        ("silent", "no sign of life for 0.3 s", 0),
        ("refuses", "no such checkpoint", 0),
        ("crashes", "(exit status 3: something snapped); that was failure 6 in a row", 5),
    ],
)
async def test_hopeless_engines_are_given_up(mode: str, words: str, restarts: int) -> None:
    told: list[str] = []
    client = client_of(mode, told, start_timeout_s=0.3 if mode == "silent" else 60)
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
    with pytest.raises(EngineUnavailableError, match=f"stopped {MAX_ATTEMPTS} times"):
        await asyncio.wait_for(handle.next(), 10)
    assert client.num_open_requests == 0
    await until(lambda: client.num_restarts == MAX_ATTEMPTS)
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


async def ids_of(handle: RequestHandle) -> list[int]:
    ids: list[int] = []
    async with asyncio.timeout(10):
        while news := await handle.next():
            for _, output in news:
                ids += output.token_ids
    return ids


async def test_requests_without_a_token_go_to_the_next_engine(tmp_path: Path) -> None:
    client = client_of(f"mortal:{MAX_ATTEMPTS - 1}", [], str(tmp_path / "lives"))
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    handles = [client.submit([Prompt([i, 50 + i], PROMPT.sampling)], n=2, request_id="r") for i in range(3)]
    assert client.waiting.total == (3, 6)
    handles[2].abort()  # its client does not wait for that
    assert client.waiting.total == (2, 4)
    assert [await ids_of(handle) for handle in handles[:2]] == [[0, 50, 0, 50], [1, 51, 1, 51]]
    assert client.num_restarts == MAX_ATTEMPTS - 1
    assert client.num_open_requests == 0
    assert client.waiting.total == (0, 0)
    await client.stop()


async def test_prompts_wait_until_they_themselves_have_begun(tmp_path: Path) -> None:
    """Else a caller could have any number of prompts waiting, in requests of which one has begun."""
    client = client_of("mortal:0", [], str(tmp_path / "lives"))
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    caller = Caller("a")
    handle = client.submit([PROMPT] * 3, n=2, request_id="r", caller=caller)
    num_tokens = len(PROMPT.ids)
    client._requests.deliver(SequenceOutput(handle.open_seq_ids[0], [1]))
    assert client.waiting.by_caller == {caller: (0, 2 * num_tokens)}
    client._requests._abort(handle, handle.open_seq_ids[2:4])  # the second prompt
    assert client.waiting.total == (0, num_tokens)
    handle.abort()
    assert client.waiting.by_caller == {}
    await client.stop()


async def test_requests_that_engines_keep_dying_of_are_given_up(tmp_path: Path) -> None:
    client = client_of(f"mortal:{MAX_ATTEMPTS}", [], str(tmp_path / "lives"))
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    handle = client.submit([PROMPT], request_id="r")
    client.drain()  # what was taken is finished, by whichever engine
    with pytest.raises(EngineUnavailableError, match=f"stopped {MAX_ATTEMPTS} times"):
        await ids_of(handle)
    assert client.num_open_requests == 0
    assert client.waiting.total == (0, 0)
    await until(lambda: client.num_restarts == MAX_ATTEMPTS)
    await client.stop()


@pytest.mark.parametrize("mode", ["hangs", "stopped"])
async def test_an_engine_that_says_nothing_is_ended(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it has work or not, whether it hangs or was stopped."""
    client = client_of(mode, [], timeout_s=0.3)
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    pid = client._supervisor.pid
    handle = client.submit([PROMPT], request_id="r") if mode == "hangs" else None
    await until(lambda: client.num_restarts == 1)
    assert pid is not None and not psutil.pid_exists(pid)
    assert "said nothing for 0.3 s (--engine-timeout-s)" in caplog.text
    assert handle is None or handle.open_seq_ids, "no token yet: it waits for the next engine"
    client.stop_at_once()
    stopped_at = time.monotonic()
    await client.stop()
    assert time.monotonic() - stopped_at < 1.5


async def test_an_idle_engine_that_answers_lives_on(tmp_path: Path) -> None:
    client = client_of("mortal:0", [], str(tmp_path / "lives"), timeout_s=0.2)
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    await asyncio.sleep(0.8)
    assert client.state is EngineState.READY
    assert client.num_restarts == 0
    await client.stop()


def test_ends_are_described() -> None:
    assert describe_exit(-11) == "SIGSEGV"
    assert describe_exit(-9) == "SIGKILL (out of memory, or by hand)"
    assert describe_exit(-100) == "signal 100"
    assert describe_exit(3) == "exit status 3"


async def test_stopping_ends_open_requests() -> None:
    client = client_of("garbage", [])
    await client.start()
    await until(lambda: client.state is EngineState.READY)
    client.leave()
    assert client.state is EngineState.DRAINING
    client.require_open()
    client.drain()
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        client.require_open()
    handle = client.submit([PROMPT], request_id="r")  # of a request that was in before
    await client.stop()
    assert client.state is EngineState.DEAD
    with pytest.raises(EngineUnavailableError):
        await asyncio.wait_for(handle.next(), 10)
    with pytest.raises(EngineUnavailableError):
        client.submit([PROMPT], request_id="r")


def test_the_engine_gets_an_allocator_and_no_keys() -> None:
    child = child_environment({"QWEN_SERVER_API_KEY": "k", "PATH": "p", "MALLOC_TOP_PAD_": "1"})
    assert "QWEN_SERVER_API_KEY" not in child
    assert (child["PATH"], child["MALLOC_TOP_PAD_"]) == ("p", "1")
    assert int(child["MALLOC_MMAP_THRESHOLD_"]) == 1 << 30
    assert child["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == child["LRU_CACHE_CAPACITY"] == "32"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ
