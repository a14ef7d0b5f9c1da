"""`qwen-server eval`: what is asked, and what a server may do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import main
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tools.evaluation.suite import ExpectedCall, ToolCase, load_suite

SUITES = ROOT / "demo" / "suites"
Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class FakeServer:
    """Answers chat completions by a function and keeps what it was sent."""

    def __init__(self, reply: Reply) -> None:
        self.requests: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "fake"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(body)
                self._send(*reply(body))

            def _send(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def fake() -> Iterator[Callable[[Reply], FakeServer]]:
    servers: list[FakeServer] = []

    def start(reply: Reply) -> FakeServer:
        servers.append(FakeServer(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def completion(**message: Any) -> tuple[int, dict[str, Any]]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": None, **message}}]}


@pytest.mark.parametrize("mode", ["tools", "functions"])
def test_a_perfect_model_is_perfect_and_a_caller_of_everything_is_not(
    mode: str, fake: Callable[[Reply], FakeServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = load_suite(SUITES / "tools.jsonl", ToolCase)
    right = {json.dumps(c.messages[-1]) + str(len(c.tools)): c.expected for c in cases}

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        offered = body.get("functions") or [tool["function"] for tool in body["tools"]]
        question = body["messages"][-1]
        if question["role"] == "function":
            expected: ExpectedCall | None = ExpectedCall(name=offered[0]["name"], arguments={})
        else:
            key = json.dumps(question) + str(len(offered))
            expected = right.get(key) or ExpectedCall(name=offered[0]["name"], arguments={})
        call = {"name": expected.name, "arguments": json.dumps(expected.arguments)}
        if mode == "functions":
            return completion(function_call=call)
        return completion(tool_calls=[{"id": "1", "type": "function", "function": call}])

    server = fake(reply)
    out = tmp_path / "report.json"
    flags = ["--mode", mode, "--base-url", server.url, "--suite", str(SUITES / "tools.jsonl"), "--json", str(out)]
    assert main(["eval", "tools", *flags]) == 0
    report = json.loads(out.read_text())
    single = report["by_category"]["one question"]
    assert (single["tool_selection"], single["arguments_exact"], single["rouge_l"]) == (1.0, 1.0, 1.0)
    assert report["by_category"]["no call"]["false_positive_rate"] == 1.0
    assert report["all"]["false_positive_rate"] == 1.0
    assert len(report["answers"]) == len(cases) == len(server.requests)
    assert all(request["temperature"] == 0 and request["model"] == "fake" for request in server.requests)
    table = capsys.readouterr().out
    assert "zh chained" in table
    assert "false pos." in table


def test_a_busy_server_is_asked_again_and_a_broken_one_is_told_of(
    fake: Callable[[Reply], FakeServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "chat.jsonl"
    lines = [
        {
            "id": str(n),
            "category": "c",
            "language": "en",
            "messages": [{"role": "user", "content": f"{n}"}],
            "expected": "ok",
        }
        for n in range(4)
    ]
    suite.write_text("\n".join(map(json.dumps, lines)))
    seen: list[str] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = body["messages"][0]["content"]
        seen.append(number)
        if number == "1" and seen.count("1") < 3:
            return 429, {}
        if number == "2":
            return 500, {"error": "broken"}
        return (200, {"choices": []}) if number == "3" else completion(content=" ok\n")

    server = fake(reply)
    assert main(["eval", "chat", "--base-url", server.url, "--suite", str(suite), "--json", str(tmp_path / "r")]) == 1
    output = capsys.readouterr()
    assert seen.count("1") == 3
    assert "2 of 4 requests failed; the first: HTTP 500" in output.err
    figures = json.loads((tmp_path / "r").read_text())["all"]
    assert figures == {"cases": 4, "right": 0.5, "failed": 2}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--base-url", "http://127.0.0.1:9/v1"], "cannot reach"),
        (["--base-url", "127.0.0.1:9"], "cannot reach"),
        (["--base-url", "ftp://127.0.0.1"], "is no address"),
        (["--base-url", "http://127.0.0.1:80000/v1"], "is no address"),
        (["--json", "/nowhere/at/all"], "cannot be written"),
        (["--suite", "/no/suite"], "cannot read the suite"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "chat", "--suite", str(SUITES / "chat.jsonl"), *flags]) == 1
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("mode", ["tools", "functions"])
def test_on_the_real_server(mode: str, server: ServerProcess, tmp_path: Path) -> None:
    suite = tmp_path / "tools.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    one = {"id": "1", "category": "c", "language": "en", "messages": messages, "tools": [tool], "expected": None}
    suite.write_text(json.dumps(one) + "\n")
    out = tmp_path / "report.json"
    flags = ["--base-url", f"{server.url}/v1", "--suite", str(suite), "--json", str(out), "--max-tokens", "16"]
    assert main(["eval", "tools", "--mode", mode, *flags]) == 0
    assert json.loads(out.read_text())["all"]["failed"] == 0


