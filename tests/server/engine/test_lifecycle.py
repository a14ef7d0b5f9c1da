"""Start, keys, limits, drain, and an engine that dies: servers of their own."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.run_module import module_command
from server.telemetry.logs import JsonFormatter
from tests.conftest import SMALL
from tests.support.in_process_server import in_process_server
from tests.support.paths import ROOT
from tests.support.readable_requests import HI
from tests.support.server_process import Server, ServerProcess, running_server

# mypy: disable-error-code="call-overload,arg-type"

ENDLESS = {"messages": HI, "ignore_eos": True, "max_tokens": 4000}


def fails(*argv: str) -> str:
    """Runs a server that cannot start; returns its last line."""
    result = subprocess.run(
        module_command("server", *argv), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    *lines, last = result.stderr.strip().splitlines()
    if "json" in argv:
        *_, entry = [json.loads(line) for line in (*lines, last)]
        assert entry["level"] == "critical"
        return str(entry["message"])
    assert last.startswith("qwen-server: ")
    return last


def test_startup_errors_are_one_line(tmp_path: Path, demo_checkpoint: Path, server: ServerProcess) -> None:
    assert "no such folder" in fails("serve", str(tmp_path / "none"))
    taken = server.url.rsplit(":", 1)[1]
    assert "cannot listen" in fails("serve", str(demo_checkpoint), "--port", taken)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in demo_checkpoint.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    assert "safetensors" in fails("serve", str(broken), "--port", "0", *SMALL, "--log-format", "json")


async def read_events(url: str, body: dict[str, object]) -> list[str]:
    async with (
        httpx.AsyncClient(timeout=60) as http,
        http.stream("POST", f"{url}/v1/chat/completions", json={**body, "stream": True}) as response,
    ):
        return [line.removeprefix("data: ") async for line in response.aiter_lines() if line]


async def test_an_engine_that_dies_and_a_server_that_is_told_to_end(demo_checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--shutdown-timeout-s", "0.3", "--log-format", "json")
    with running_server(demo_checkpoint, tmp_path / "log", *SMALL, *flags) as server:
        await check_a_dying_engine_ends_requests_and_comes_back(server)
        await check_drain_has_an_end_and_says_so(server)
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert {line["logger"].partition(".")[0] for line in lines} >= {"server", "engine"}, "all is JSON, the engine's too"


async def check_a_dying_engine_ends_requests_and_comes_back(server: ServerProcess) -> None:
    streams = [asyncio.create_task(read_events(server.url, ENDLESS)) for _ in range(8)]
    async with httpx.AsyncClient(timeout=60) as http:
        plain = asyncio.create_task(http.post(f"{server.url}/v1/chat/completions", json=ENDLESS))
        while server.metric("vllm:num_requests_running") < 9:
            await asyncio.sleep(0.02)
        os.kill(server.engine_pid(), signal.SIGKILL)
        started = time.monotonic()
        for events in await asyncio.gather(*streams):
            assert json.loads(events[-1])["error"]["code"] == "engine_unavailable"
        response = await plain
        assert time.monotonic() - started < 5
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) <= 60
    await asyncio.to_thread(server.wait_ready, 30)
    assert server.metric("qwen:engine_restarts_total") == 1
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as sdk:
        assert sdk.chat.completions.create(model="Qwen", messages=HI, max_tokens=2).choices


async def check_drain_has_an_end_and_says_so(server: ServerProcess) -> None:
    stream = asyncio.create_task(read_events(server.url, ENDLESS))
    while server.metric("vllm:num_requests_running") < 1:
        await asyncio.sleep(0.02)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert "shutting down" in json.loads((await stream)[-1])["error"]["message"]
    assert server.process.wait(10) == 0, "it was told to end, and did"
    assert time.monotonic() - started < 8


async def test_drain_finishes_what_runs_and_refuses_the_rest(demo_checkpoint: Path) -> None:
    with in_process_server(demo_checkpoint, *SMALL, "--shutdown-timeout-s", "60") as server:
        body = {**ENDLESS, "max_tokens": 200}
        async with httpx.AsyncClient(timeout=60) as http:
            running = asyncio.create_task(http.post(f"{server.url}/v1/chat/completions", json=body))
            stream = asyncio.create_task(read_events(server.url, body))
            while server.metric("vllm:num_requests_running") < 2:
                await asyncio.sleep(0.02)
            server.signal()
            while server.status("/ready") == 200:
                await asyncio.sleep(0.01)
            assert server.status("/ready") == 503
            assert server.status("/health") == 200
            refused = await http.post(f"{server.url}/v1/chat/completions", json=body)
            assert refused.status_code == 503
            response = await running
            assert response.json()["usage"]["completion_tokens"] == 200
            assert (await stream)[-1] == "[DONE]"
        server.join(10)


async def test_a_second_signal_ends_at_once(demo_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with in_process_server(demo_checkpoint, *SMALL) as server:
        stream = asyncio.create_task(read_events(server.url, ENDLESS))
        while server.metric("vllm:num_requests_running") < 1:
            await asyncio.sleep(0.02)
        server.signal()
        while server.status("/ready") == 200:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert not server.has_ended() and not stream.done()
        server.signal()
        assert "at once" in json.loads((await stream)[-1])["error"]["message"]
        server.join(8)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the server logs as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    with caplog.at_level(logging.INFO):
        yield lambda: stream.getvalue().splitlines()
    logging.getLogger().removeHandler(handler)


async def test_keys_limits_and_timeouts(demo_checkpoint: Path, log_lines: Callable[[], list[str]]) -> None:
    flags = (
        "--max-body-bytes",
        "4KiB",
        "--request-timeout-s",
        "0.6",
        "--max-queue-requests",
        "2",
    )
    more = (
        "--api-auth",
        "user:pw",
        "--cors-allow-origin",
        "https://a.example",
        "--ping-interval-s",
        "0.1",
        "--max-num-seqs",
        "1",
    )
    env = {"QWEN_SERVER_API_KEY": "alpha,beta"}
    with in_process_server(demo_checkpoint, *SMALL, *flags, *more, env=env) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as sdk:
            with pytest.raises(openai.AuthenticationError) as caught:
                sdk.models.list()
            assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="beta", max_retries=0) as sdk:
            assert sdk.models.list().data
        async with httpx.AsyncClient(base_url=server.url, auth=("user", "pw"), timeout=30) as http:
            assert (await http.get("/v1/models")).status_code == 200
            await check_body_limit(http)
            await check_timeout(http, server)
            await check_queue(http)
            cors = await http.options(
                "/v1/models", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
            )
            assert cors.headers["access-control-allow-origin"] == "https://a.example"
    finished = [line for line in map(json.loads, log_lines()) if line["message"] == "finished"]
    assert finished and {"request_id", "reason", "completion_tokens", "ttft_s", "tokens_per_s"} <= set(finished[0])
    assert "alpha" not in "".join(log_lines())


async def check_body_limit(http: httpx.AsyncClient) -> None:
    big = {"messages": [{"role": "user", "content": "x" * 5000}]}

    async def chunked() -> object:
        for _ in range(10):
            yield b"x" * 1000

    for response in (
        await http.post("/v1/chat/completions", json=big),
        await http.post("/v1/chat/completions", content=chunked(), headers={"content-type": "application/json"}),
    ):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


async def check_timeout(http: httpx.AsyncClient, server: Server) -> None:
    response = await http.post("/v1/chat/completions", json=ENDLESS)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"
    async with http.stream("POST", "/v1/chat/completions", json={**ENDLESS, "stream": True}) as stream:
        lines = [line async for line in stream.aiter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert ": ping" in lines
    server.wait_idle()


async def check_queue(http: httpx.AsyncClient) -> None:
    """One place in the engine and two in the queue: of eight requests some are refused, with a time to come back."""
    responses = await asyncio.gather(*(http.post("/v1/chat/completions", json=ENDLESS) for _ in range(8)))
    refused = [r for r in responses if r.status_code == 429]
    assert len(refused) >= 4
    assert all(1 <= int(r.headers["retry-after"]) <= 60 for r in refused)
    assert refused[0].json()["error"]["code"] == "server_overloaded"
