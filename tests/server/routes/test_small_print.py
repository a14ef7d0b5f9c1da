"""Small things that clients and operators run into: each was reported once."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import psutil
import pytest

from model.contract.engine_config import EngineConfig
from model.contract.errors import CheckpointError, EngineUnavailableError
from model.contract.files.model_config import read_model_config
from model.contract.sampling_params import SamplingParams
from server.__main__ import main
from server.engine.client import EngineClient, Prompt
from server.engine.supervisor import EngineState
from server.grammars.check import GrammarChecker
from server.run_module import module_command
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.completions import CompletionRequest
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tests.support.vocabulary import byte_tokenizer
from tests.support.wire import Wire

HI = [{"role": "user", "content": "hi"}]


def say(server: ServerProcess, data: bytes, *, half_close: bool = False) -> bytes:
    """Sends bytes and returns all that comes back until the server closes."""
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        if half_close:  # in one packet with the end: once a reply has begun, who says nothing more has left
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def post(body: dict[str, Any], *headers: bytes) -> bytes:
    data = json.dumps(body).encode()
    lines = [b"POST /v1/chat/completions HTTP/1.1", *headers, b"Content-Length: %d" % len(data)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + data


@pytest.mark.parametrize("stream", [False, True])
def test_who_half_closes_is_answered(server: ServerProcess, stream: bool) -> None:
    body = {"messages": HI, "max_tokens": 3, "ignore_eos": True, "stream": stream}
    reply = say(server, post(body, b"Host: localhost"), half_close=True)
    assert b"HTTP/1.1 200 OK" in reply
    assert (b"data: [DONE]" if stream else b'"finish_reason":"length"') in reply


def test_who_closes_has_left(server: ServerProcess) -> None:
    """Also one that says nothing more before its reply has begun: its place is freed."""
    url = urlsplit(server.url)
    body = {"messages": HI, "max_tokens": 1900, "ignore_eos": True}
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(post(body, b"Host: localhost"))
        deadline = time.monotonic() + 10
        while not server.metric("vllm:num_requests_running") and time.monotonic() < deadline:
            time.sleep(0.01)
    before = server.metric("vllm:generation_tokens_total")
    server.wait_idle(10)
    assert server.metric("vllm:generation_tokens_total") - before < 1800


@pytest.mark.parametrize("hosts", [(), (b"Host: localhost", b"Host: localhost"), (b"Host: a", b"host: b")])
def test_a_request_has_one_host(server: ServerProcess, hosts: tuple[bytes, ...]) -> None:
    reply = say(server, post({"messages": HI, "max_tokens": 1}, *hosts))
    assert reply.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"exactly one Host header" in reply
    assert say(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/version", "/", "/docs"])
def test_head_is_get_without_the_body(server: ServerProcess, path: str) -> None:
    line = f"{{}} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    got, head = (say(server, line.format(method).encode()).partition(b"\r\n\r\n") for method in ("GET", "HEAD"))
    assert head[0].splitlines()[0] == got[0].splitlines()[0] == b"HTTP/1.1 200 OK"
    assert got[2]
    assert not head[2]
    nowhere = say(server, b"HEAD /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert nowhere.startswith(b"HTTP/1.1 404")
    assert nowhere.endswith(b"\r\n\r\n")


NUMBERS = sorted(
    {
        (model, name)
        for model in (ChatCompletionRequest, CompletionRequest)
        for name, field in model.model_fields.items()
        if any(
            int in (kind, *get_args(kind)) or float in (kind, *get_args(kind)) for kind in get_args(field.annotation)
        )
    },
    key=str,
)


@pytest.mark.parametrize(("model", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_true_is_no_number(model: Any, name: str) -> None:
    with pytest.raises(ValueError, match="should be a number, not true or false"):
        model.model_validate({"messages": HI, "prompt": "a", name: True})


def test_the_numbers_were_found() -> None:
    assert len(NUMBERS) > 30
    assert (ChatCompletionRequest, "max_tokens") in NUMBERS


# --- grammars, and an engine that dies meanwhile


async def test_a_worker_that_was_stopped_is_replaced() -> None:
    checker = GrammarChecker(byte_tokenizer())
    await checker.check({'start: "a"': "it"}, param="p")
    stopped = checker._worker._process
    assert stopped is not None
    psutil.Process(stopped.pid).suspend()
    await checker.check({'start: "b"': "it"}, param="p")
    assert checker._worker._process is not stopped
    assert stopped.poll() == -signal.SIGKILL
    checker.close()


def test_a_request_that_is_understood_while_the_engine_is_away_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = EngineClient(EngineConfig(checkpoint_path="none"))
    supervisor = engine._supervisor
    sent: list[Any] = []
    monkeypatch.setattr(supervisor, "send", sent.append)
    monkeypatch.setattr(supervisor, "state", EngineState.RECOVERING)
    handle = engine.submit([Prompt([1], SamplingParams(max_tokens=1))], request_id="r")
    assert not sent
    assert engine.num_open_requests == 1
    monkeypatch.setattr(supervisor, "state", EngineState.READY)
    engine._on_ready()
    assert [message.request_id for message in sent] == ["r"]
    handle.abort()
    monkeypatch.setattr(supervisor, "state", EngineState.DEAD)
    with pytest.raises(EngineUnavailableError):
        engine.submit([Prompt([1], SamplingParams(max_tokens=1))], request_id="r")


# --- what a server is started with


def serve(model: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = module_command("server", "serve", str(model), "--port", "0", "--device", "cpu")
    return subprocess.Popen([*command, "--kv-cache-memory", "64MiB", "--threads", "1"], cwd=ROOT, **options)


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))


def test_too_few_files_are_named(demo_checkpoint: Path) -> None:
    process = serve(demo_checkpoint, stderr=subprocess.PIPE, preexec_fn=few_files)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"only 20 files may be open at a time (ulimit -n)" in words.splitlines()[-1]


def test_an_engine_that_cannot_be_started_is_told_in_one_line(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process has the limit of descriptors that the server takes for itself, and no keys are left to inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = []

    def popen(*_: Any, **__: Any) -> None:
        limits.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        assert "QWEN_SERVER_API_KEY" not in os.environ
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv("QWEN_SERVER_API_KEY", "alpha")
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert main(["serve", str(demo_checkpoint)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (words,) = capsys.readouterr().err.splitlines()
    assert words == "qwen-server: cannot start the engine process: [Errno 11] Resource temporarily unavailable"
    assert limits == [min(1 << 16, hard) if hard != resource.RLIM_INFINITY else 1 << 16]


def test_closed_standard_files_are_opened(demo_checkpoint: Path) -> None:
    """Else sockets take their numbers, and the log is written to them."""
    process = serve(demo_checkpoint, preexec_fn=lambda: os.closerange(0, 3))
    try:
        deadline = time.monotonic() + 60
        while not (connections := psutil.Process(process.pid).net_connections()) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        assert min(connection.fd for connection in connections) > 2
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_sizes_beyond_all_models_are_refused(demo_checkpoint: Path, tmp_path: Path, name: str) -> None:
    config = json.loads((demo_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 10**9}))
    with pytest.raises(CheckpointError, match=f"'{name}' is 1e\\+09; no such model has more than"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "qwen.tiktoken", "model.safetensors", "a.bin"]
)
def test_pipes_in_the_place_of_files_are_refused(demo_checkpoint: Path, tmp_path: Path, name: str) -> None:
    for path in demo_checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is no regular file"):
        read_model_config(tmp_path)


def test_a_vocabulary_that_is_damaged_later_is_not_told_by_its_path(wire: Wire, demo_checkpoint: Path) -> None:
    """The engine reads it when the first grammar comes."""
    from model.sampling.compiled_grammars import GrammarCompiler

    compiler = GrammarCompiler(str(demo_checkpoint / "nowhere"), 300)
    error = compiler.compile('start: "a"').exception(timeout=30)
    assert str(error) == "the server cannot read its vocabulary any more"
    again = GrammarCompiler(str(demo_checkpoint / "nowhere"), 300)
    again.compile('start: "a"').exception(timeout=30)
    again._checkpoint_path = str(demo_checkpoint)
    assert again.compile('start: "a"').exception(timeout=30) is None
