"""`echo question | qwen-server chat`: the reply alone, and an exit status that tells."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import httpx
import pytest

from server.__main__ import main
from tests.support.fake_server import Script, Writer, chunk, event, fake_server, fixed, stream, usage
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tests.tools.chat.conftest import CHAT, Piped

END = (chunk("", "stop"), event({"choices": [], "usage": usage(5, 4)}), event("[DONE]"))


def test_the_reply_is_printed_as_it_is(server: ServerProcess, piped: Piped) -> None:
    body = {"messages": [{"role": "user", "content": "What\nis it?"}], "max_tokens": 20, "temperature": 0}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    wanted = reply["choices"][0]["message"]["content"]
    done = piped("What\nis it?\n", "--base-url", server.url, "--set", "max_tokens=20 temperature=0")
    assert (done.returncode, done.stderr) == (0, "")
    # Text mode of the pipe reads every kind of line end as \n.
    assert done.stdout.rstrip("\n") == wanted.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def test_the_server_and_the_key_may_come_from_the_environment(piped: Piped) -> None:
    async def script(number: int, body: dict[str, Any], writer: Writer) -> bool:
        return await stream(writer, chunk("ok **bold**\n"), *END)

    with fake_server(script) as server:
        done = piped("hi", "--system", "Be brief.", OPENAI_BASE_URL=server.url, OPENAI_API_KEY="sesame")
        assert (done.stdout, done.stderr) == ("ok **bold**\n", "")
        assert server.headers["authorization"] == "Bearer sesame"
        roles = [message["role"] for message in server.bodies[0]["messages"]]
        assert roles == ["system", "user"]


async def _wants_a_key(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(fixed(401, {"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}}))
    return True


async def _dies(number: int, body: dict[str, Any], writer: Writer) -> bool:
    data = chunk("half")
    head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(head + f"{len(data):x}\r\n".encode() + data + b"\r\n")
    return False


async def _stops_short(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, chunk("half"))


async def _fails_in_the_stream(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, chunk("half"), event({"error": {"message": "The engine stopped."}}))


async def _is_busy(number: int, body: dict[str, Any], writer: Writer) -> bool:
    writer.write(fixed(503, {"error": {"message": "The engine is loading.", "code": "engine_unavailable"}}))
    return True


async def _speaks_html(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, event("<html>"))


async def _sends_other_shapes(number: int, body: dict[str, Any], writer: Writer) -> bool:
    return await stream(writer, event({"choices": "none"}))


@pytest.mark.parametrize(
    ("script", "out", "err"),
    [
        (_wants_a_key, "", "Incorrect API key provided. Give yours with --api-key, or in the variable OPENAI_API_KEY."),
        (_dies, "half\n", "The connection broke in the middle of the reply: the server may have stopped."),
        (_stops_short, "half\n", "The reply broke off before its end: the server may have stopped."),
        (_fails_in_the_stream, "half\n", "The engine stopped."),
        (_is_busy, "", "The engine is loading. /retry asks again."),
        (_speaks_html, "", "That is no OpenAI-compatible server: it sent b'<html>'."),
        (_sends_other_shapes, "", 'That is no OpenAI-compatible server: it sent b\'{"choices": "none"}\'.'),
    ],
)
def test_failures_are_a_sentence(script: Script, out: str, err: str, piped: Piped) -> None:
    with fake_server(script) as server:
        done = piped("hi", "--base-url", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (1, out, f"qwen-server chat: {err}\n")


def test_a_question_too_long_for_the_server(server: ServerProcess, piped: Piped) -> None:
    done = piped("x " * 3000, "--base-url", server.url)
    assert done.returncode == 1
    assert done.stderr.startswith("qwen-server chat: The conversation has become too long. This model's maximum")
    assert "/set truncation=auto" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--base-url", "ftp://x"], "'ftp://x' is no address"),
        (["MODEL", "--base-url", "http://x"], "either a MODEL to serve or the --base-url"),
        (["--", "--dtype", "float32"], "name its MODEL too"),
        (["/nonexistent/folder"], "no such folder"),
        (["--base-url", "http://127.0.0.1:1"], "Nobody answers at http://127.0.0.1:1/v1"),
    ],
)
def test_mistakes_are_a_sentence(arguments: list[str], complaint: str, piped: Piped) -> None:
    done = piped("hi", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("qwen-server chat: ") and complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "temprature=1"], "did you mean temperature?"),
        (["--set", "temperature=-1"], "temperature: input should be greater than or equal to 0."),
        (["--tools", "/nonexistent"], "Cannot read /nonexistent: No such file or directory."),
        (["--load", "/dev/null"], "/dev/null is not JSON"),
    ],
)
def test_what_is_asked_for_is_checked(arguments: list[str], complaint: str, piped: Piped) -> None:
    with fake_server() as server:
        done = piped("hi", "--base-url", server.url, *arguments)
        assert not server.bodies
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr


def test_no_question(piped: Piped) -> None:
    done = piped(" \n", "--base-url", "http://127.0.0.1:1")
    assert done.stderr == "qwen-server chat: There is no question on standard input.\n"


def _start(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*CHAT, "--base-url", url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def _endless(number: int, body: dict[str, Any], writer: Writer) -> bool:
    await stream(writer, *[chunk("word ")] * 500, pause_s=0.02)
    return False


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_quietly(number: int, status: int) -> None:
    with fake_server(_endless) as server:
        process = _start(server.url)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hi")
        process.stdin.close()
        assert process.stdout.read(5) == b"word "
        os.kill(process.pid, number)
        process.stdin = None
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (status, b"")


def test_a_reader_that_leaves_is_no_failure() -> None:
    with fake_server(_endless) as server:
        process = _start(server.url)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"hi")
        process.stdin.close()
        assert process.stdout.read(5) == b"word "
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(20) == 0


def test_without_a_terminal_there_is_nothing_to_chat_on() -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    done = subprocess.run([*CHAT], cwd=ROOT, stdin=follower, capture_output=True, text=True, timeout=60)
    os.close(leader)
    os.close(follower)
    assert done.returncode == 1
    assert "echo question | qwen-server chat" in done.stderr


def test_help_names_the_way_flags_reach_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    assert "-- --dtype bfloat16" in " ".join(capsys.readouterr().out.split())
