"""The load generator against servers that behave and that do not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.run_module import module_command
from tests.support.bench_command import main
from tests.support.fake_server import (
    FakeServer,
    Script,
    Writer,
    chunk,
    chunked,
    event,
    fake_server,
    fixed,
    good,
    good_events,
    head,
    stream,
)
from tests.support.paths import ROOT
from tools.bench import load
from tools.bench.load import Client, Level, Load, run_level
from tools.bench.reply import Record
from tools.bench.report import describe, percentile, summarise

BODY = b'{"stream": true}'


def measure(server: FakeServer, count: int = 1, *, timeout_s: float = 5.0, **wishes: Any) -> Level:
    async def run() -> Level:
        client, level = Client(server.url, timeout_s=timeout_s), Level()
        settings: dict[str, Any] = {"path": "/completions", "bodies": [BODY] * count, "concurrency": 1} | wishes
        await run_level(client, Load(**settings), level)
        client.close()
        return level

    return asyncio.run(run())


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(count: int) -> None:
    values = sorted(np.random.default_rng(count).exponential(size=count).tolist())
    for percent in (0, 1, 50, 90, 95, 99, 99.9, 100):
        assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)
    figures = describe(values[::-1])
    assert figures is not None
    assert (figures["min"], figures["max"], figures["count"]) == (values[0], values[-1], count)
    assert figures["mean"] == pytest.approx(np.mean(values))
    assert figures["p95"] == percentile(values, 95)


def test_no_values_have_no_percentiles() -> None:
    assert describe([]) is None


def test_a_stream_is_timed_by_the_events_that_carry_tokens() -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        return await stream(writer, *good_events(7, 4), pause_s=0.03)

    with fake_server(script) as server:
        level = measure(server)
    (record,) = level.records
    assert record.error is None
    assert (record.prompt_tokens, record.output_tokens, record.is_counted) == (7, 4, True)
    assert record.ttft is not None
    assert 0.03 <= record.ttft < 0.2  # not by the event that only says who speaks
    assert len(record.gaps) == 2
    assert all(0.025 < gap < 0.2 for gap in record.gaps)
    assert record.generation == pytest.approx(sum(record.gaps))
    assert record.per_output_token == pytest.approx(record.generation / 3)
    assert record.duration > record.ttft + record.generation
    assert level.duration == pytest.approx(record.duration, abs=0.01)


def test_throughput_counts_what_completed() -> None:
    level = Level(duration=2.0, client_cpu_s=0.5)
    level.records = [Record(0.0, 1.0, 0.2, prompt_tokens=10, output_tokens=30, is_counted=True) for _ in range(2)]
    level.records += [Record(0.0, 1.0, output_tokens=99, error="http 503", detail="busy") for _ in range(3)]
    figures = summarise(level, {"concurrency": 2})
    assert (figures["output_tokens_per_s"], figures["total_tokens_per_s"], figures["requests_per_s"]) == (30, 40, 1)
    assert (figures["completed"], figures["failed"], figures["client_cpu_share"]) == (2, 3, 0.25)
    assert figures["errors"] == {"http 503": {"count": 3, "first": "busy"}}
    assert figures["latency"]["ttft_s"]["count"] == 2
    assert figures["latency"]["inter_token_s"] is None


def test_a_reply_that_is_not_streamed() -> None:
    with fake_server() as server:
        (record,) = measure(server, bodies=[b"{}"], stream=False).records
    assert record.error is None
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (5, 4, 2)
    assert record.ttft is None


async def _refuse(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(fixed(429, {"error": {"message": "Too many\nrequests wait."}}))
    return True


async def _fail(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(head(502, "content-length: 11") + b"Bad Gateway")
    return True


async def _hang(number: int, body: dict[str, Any], writer: Writer) -> bool:
    await stream(writer, chunk("a"), pause_s=0.5)
    return False


async def _drop_unanswered(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return False


async def _drop_inside(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(head(200, "transfer-encoding: chunked") + chunked(chunk("a")) + b"5\r\nab")
    return False


async def _reset(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(head(200, "transfer-encoding: chunked") + chunked(chunk("a")))
    await writer.drain()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    return False


async def _err_in_stream(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, chunk("a"), event({"error": {"message": "The engine stopped."}}))


async def _stop_early(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, chunk("a"))


async def _talk_nonsense(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(b"220 smtp.example ESMTP\r\n")
    return False


async def _send_no_json(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, event("{nonsense"))


@pytest.mark.parametrize(
    ("script", "kind", "detail"),
    [
        (_refuse, "http 429", "Too many requests wait."),
        (_fail, "http 502", "Bad Gateway"),
        (_hang, "timeout", "0.2 s"),
        (_drop_unanswered, "disconnected", "before the reply"),
        (_drop_inside, "disconnected", "inside the reply"),
        (_reset, "disconnected", "inside the reply"),
        (_err_in_stream, "error in stream", "The engine stopped."),
        (_stop_early, "cut short", "finish reason"),
        (_talk_nonsense, "bad reply", "not an HTTP/1.1 reply"),
        (_send_no_json, "bad reply", "not JSON"),
    ],
)
def test_every_failure_is_counted_and_the_rest_goes_on(script: Script, kind: str, detail: str) -> None:
    async def mixed(number: int, body: dict[str, Any], writer: Writer) -> bool:
        return await (script if number % 2 else good)(number, body, writer)

    with fake_server(mixed) as server:
        level = measure(server, 4, timeout_s=0.2)
    assert [record.error for record in level.records] == [None, kind, None, kind]
    assert all(detail in record.detail for record in level.records if record.error)
    assert level.num_unfinished == 0


def test_without_usage_events_are_counted() -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        return await stream(writer, chunk(""), chunk("a"), chunk("b"), chunk("", "stop"), event("[DONE]"))

    with fake_server(script) as server:
        level = measure(server)
    assert level.records[0].output_tokens == 2
    assert summarise(level, {"concurrency": 1})["tokens_counted_by"] == "events"


def test_connections_are_kept_and_closed_ones_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        await good(number, body, writer)
        await writer.drain()
        return number != 10  # closed without telling

    def two_apart() -> Level:
        return measure(server, 2, concurrency=None, arrivals=[0.0, 0.1])

    with fake_server(script) as server:
        levels = [measure(server, 8)]
        assert server.num_connections == 1
        levels.append(two_apart())
        assert server.num_connections == 2
        levels.append(two_apart())
        assert server.num_connections == 4  # the second request of the last run came after the close
        monkeypatch.setattr(load, "MAX_IDLE_S", 0.05)
        levels.append(two_apart())
        assert server.num_connections == 6
    assert not any(record.error for level in levels for record in level.records)


def test_concurrency_is_kept() -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        await asyncio.sleep(0.01)
        return await good(number, body, writer)

    with fake_server(script) as server:
        level = measure(server, 24, concurrency=8)
        assert server.max_running == 8
        assert server.num_connections == 8
    assert len(level.records) == 24


def test_arrivals_do_not_wait_for_replies() -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        await asyncio.sleep(0.3)
        return await good(number, body, writer)

    arrivals = [0.0, 0.05, 0.05, 0.1]
    with fake_server(script) as server:
        level = measure(server, 4, concurrency=None, arrivals=arrivals)
        assert server.max_running == 4
    assert sorted(record.started for record in level.records) == pytest.approx(arrivals, abs=1e-6)
    assert all(0.3 < record.duration < 0.6 for record in level.records)


def test_time_is_bounded() -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        await asyncio.sleep(0.05)
        return await good(number, body, writer)

    with fake_server(script) as server:
        assert 2 <= len(measure(server, 1000, max_duration_s=0.2).records) <= 6
        arrivals = [i * 0.05 for i in range(1000)]
        level = measure(server, 1000, concurrency=None, arrivals=arrivals, max_duration_s=0.2)
        assert 2 <= len(level.records) <= 6


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    with fake_server() as server:
        arguments = ["--base-url", f"{server.url}/v1/", "--concurrency", "1", "4", "--num-requests", "8", "--raw"]
        assert main([*arguments, "--api-key", "sesame", "--max-tokens", "4", "--json", str(path)]) == 0
        assert server.headers["authorization"] == "Bearer sesame"
        assert len(server.bodies) == 2 + (1 + 8) + (4 + 8)  # the scale, and each level after its warm-up
    shown = capsys.readouterr().out
    assert "fake, version 1.2.3" in shown
    assert "time to first token" in shown
    assert "1.0 x" in shown
    text = path.read_text()
    assert "sesame" not in text
    figures = json.loads(text)
    assert figures["server"] == {"base_url": f"{server.url}/v1/", "model": "fake", "version": "1.2.3"}
    assert figures["hardware"]["cpu"]
    assert figures["parameters"]["max_tokens"] == "4"
    assert [level["completed"] for level in figures["levels"]] == [8, 8]
    assert len(figures["levels"][0]["requests"]) == 8
    assert figures["levels"][1]["ratio_to_first"] > 0


def test_the_command_with_a_rate_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "a", "best_of": 1}\n{"prompt": "b"}\n')
    with fake_server() as server:
        arguments = ["--base-url", server.url, "--request-rate", "50", "--endpoint", "completions"]
        assert main([*arguments, "--requests", str(requests), "--num-requests", "5"]) == 0
        assert [body["prompt"] for body in server.bodies] == ["a", "b", "a", "b", "a"]
    assert "rate 50" in capsys.readouterr().out
    assert main(["--base-url", server.url, "--requests", str(tmp_path / "none")]) == 1


def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server() as server:
        assert main(["--base-url", server.url, "--concurrency", "4", "--num-requests", "3"]) == 1
        assert "cannot keep 4 streams busy" in capsys.readouterr().err
        assert main(["--base-url", server.url, "--prompt-kind", "ids"]) == 1
        assert "needs --endpoint completions" in capsys.readouterr().err
        assert not server.bodies[2:]  # after those that found the scale


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        assert main(["--base-url", url]) == 1
    assert capsys.readouterr().err == f"qwen-server bench: {url}: connection refused\n"
    for url in ("ftp://x", "http://127.0.0.1:80000", "http://[::1"):
        assert main(["--base-url", url]) == 1
        assert capsys.readouterr().err == (
            f"qwen-server bench: {url!r} is no address; write it as http://127.0.0.1:8000.\n"
        )


def test_a_server_that_refuses_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(_refuse) as server:
        assert main(["--base-url", server.url]) == 1
        assert "the first request failed: http 429: Too many requests wait." in capsys.readouterr().err
        assert main(["--base-url", server.url, "--endpoint", "completions"]) == 1
        assert "every warm-up request failed: http 429: Too many requests wait." in capsys.readouterr().err
        arguments = ["--base-url", server.url, "--endpoint", "completions", "--warmup", "0", "--num-requests", "3"]
        assert main(arguments) == 1
        assert "concurrency 1: 3 failed, http 429: Too many requests wait." in capsys.readouterr().out


def test_ctrl_c_prints_what_there_is(tmp_path: Path) -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        await asyncio.sleep(0 if number < 5 else 30)
        return await good(number, body, writer)

    path = tmp_path / "figures.json"
    with fake_server(script) as server:
        command = module_command("server", "bench", "--base-url", server.url, "--endpoint", "completions")
        command += ["--concurrency", "2", "--num-requests", "50", "--warmup", "0", "--json", str(path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 10
        while len(server.bodies) < 7 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == ""
    assert "concurrency 2: interrupted; 2 unfinished requests are not counted" in out
    figures = json.loads(path.read_text())
    assert figures["interrupted"]
    assert (figures["levels"][0]["completed"], figures["levels"][0]["unfinished"]) == (5, 2)
