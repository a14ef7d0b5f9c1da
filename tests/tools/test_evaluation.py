"""`qwen-server eval`: what counts as right, what is asked, and what a server may do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model.contract.errors import ConfigError
from server.__main__ import main
from tests.support.fake_server import fake_server, fixed
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess
from tools.evaluation import plugin
from tools.evaluation.asking import Answer, to_functions
from tools.evaluation.rouge import rouge_l
from tools.evaluation.scores import score_tool
from tools.evaluation.suite import ChatCase, ExpectedCall, ToolCase, load_suite, matches

SUITES = ROOT / "demo" / "suites"
CALL = ExpectedCall(name="weather", arguments={"city": "Paris", "days": 2, "now": True})
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def case(expected: ExpectedCall | None) -> ToolCase:
    messages = [{"role": "user", "content": "?"}]
    return ToolCase(id="1", category="c", language="en", messages=messages, tools=TOOLS, expected=expected)


def answer(tool: str | None, arguments: Any) -> Answer:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Answer(tool=tool, arguments=text, num_calls=int(tool is not None))


@pytest.mark.parametrize(
    ("reply", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the cat sat down", 2 * 2 / 6),  # P 1, R 1/2
        ("b a", "a b", 0.5),  # order counts
        ("", "a", 0.0),
        ("天气很好", "天气好", 2 * 3 / 7),  # Chinese character by character
        ("1234", "1934", 0.75),  # digits one by one
        ("", "", 1.0),
    ],
)
def test_rouge_l_by_hand(reply: str, reference: str, score: float) -> None:
    assert rouge_l(reply, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("got", "selection", "exact"),
    [
        (answer("weather", {"now": True, "days": 2.0, "city": "Paris"}), True, True),
        (answer("weather", {"city": "Paris", "days": 2, "now": 1}), True, False),
        (answer("weather", {"city": "Paris", "days": 2}), True, False),
        (answer("weather", "not json"), True, False),
        (answer("other", {"city": "Paris", "days": 2, "now": True}), False, False),
        (Answer(text="It is sunny."), False, False),
        (Answer(error="HTTP 500"), False, False),
        (Answer(tool="weather", arguments=json.dumps(CALL.arguments), num_calls=2), True, False),
    ],
)
def test_a_call_is_scored(got: Answer, selection: bool, exact: bool) -> None:
    score = score_tool(case(CALL), got)
    assert (score.selection, score.exact, score.false_positive) == (selection, exact, None)
    assert score.rouge_l is not None
    assert (score.rouge_l == 0.0) == (got.tool is None or got.arguments == "not json")


def test_no_call_is_scored() -> None:
    assert score_tool(case(None), answer("weather", {})).false_positive is True
    assert score_tool(case(None), Answer(text="Hello")).false_positive is False
    assert score_tool(case(None), Answer(text="Hello")).selection is None
    assert score_tool(case(None), Answer(error="HTTP 500")).false_positive is None  # it has not held back


@pytest.mark.parametrize(
    ("reply", "expected", "match", "right"),
    [
        (" I am\nQwen. ", "I am Qwen.", "exact", True),
        ("i am Qwen.", "I am Qwen.", "exact", False),
        ("Your name is ANNA.", "Anna", "contains", True),
        ("You are 14.", "4", "contains", False),
        ("你叫安娜。", "安娜", "contains", True),
        ("3 + 4 = 7.", "7", "number", True),
        ("1,024.0", "1024", "number", True),
        ("1024", "1,024", "number", True),
        ("7 - 10 = -3", "3", "number", False),
        ("none", "0", "number", False),
    ],
)
def test_what_matches(reply: str, expected: str, match: Any, right: bool) -> None:
    assert matches(reply, expected, match) is right


def test_the_older_spelling_of_a_conversation() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
    ]
    assert to_functions(messages) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
    ]


def test_the_shipped_suites_are_whole() -> None:
    tools, unmet = (load_suite(SUITES / f"{name}.jsonl", ToolCase) for name in ("tools", "tools-unmet"))
    chat = load_suite(SUITES / "chat.jsonl", ChatCase)
    assert min(len(tools), len(unmet)) >= 300
    assert len(chat) >= 200
    assert all({c.language for c in cases} == {"en", "zh"} for cases in (tools, unmet, chat))
    for one in tools + unmet:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in one.tools}
        assert len(schemas) == len(one.tools)
        if one.expected is not None:
            schema = schemas[one.expected.name]
            assert set(schema.get("required", ())) <= one.expected.arguments.keys() <= schema["properties"].keys()
    assert sum(path.stat().st_size for path in SUITES.iterdir()) < 1_500_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no case"),
        ("{", "line 1: not JSON"),
        ('{"id": "1"}', "line 1: category: field required"),
        ('\n{"id": "1", "category": "c", "language": "en", "messages": [], "expected": "x"}', "line 2: messages"),
        (
            '{"id": "1", "category": "c", "language": "en", "messages": [{}], "expected": "x", "mtch": 1}',
            "line 1: mtch",
        ),
        (
            '{"id": "1", "category": "c", "language": "en", "messages": [{}], "expected": "42 km", "match": "number"}',
            "line 1: the line: match is number, and expected is none: '42 km'",
        ),
    ],
)
def test_suites_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_suite(path, ChatCase)


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    asked = "one\u2028two\x85three"
    line = {"id": "1", "category": "c", "language": "en", "messages": [{"role": "user", "content": asked}]}
    path.write_text(json.dumps({**line, "expected": "x"}, ensure_ascii=False) + "\r\n\n", newline="")
    (only,) = load_suite(path, ChatCase)
    assert only.messages[0]["content"] == asked


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tools": [{"name": "f"}]}, "each of the tools needs a function with a name"),
        ({"expected": {"name": "g", "arguments": {}}}, "expected calls 'g', which is none of the tools"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]}, "of an earlier call"),
        ({"expected": {"name": "weather"}}, r"expected\.arguments: field required"),
    ],
)
def test_tool_cases_that_cannot_be_asked(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps({**case(CALL).model_dump(), **change}))
    with pytest.raises(ConfigError, match=words):
        load_suite(path, ToolCase)


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


# -- the published plugin benchmark

PROMPT = """Answer the following questions as best you can. You have access to the following APIs:

image_gen: Call this tool to interact with the image_gen API. Parameters: []

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [image_gen, weather]
Action Input: the input to the action
Observation: the result of the action

Begin!

Question: {question}"""
RIGHT = 'Thought: I need the weather.\nAction: weather\nAction Input: {"city": "杭州", "days": 2}\nObservation: 22\n'


def plugin_suite(path: Path) -> Path:
    lines = [
        {"prompt": PROMPT.format(question="杭州的天气怎么样？"), "response": RIGHT},
        {
            "prompt": PROMPT.format(question="Draw a cat."),
            "response": "Thought: x\nAction: image_gen\nAction Input: {}",
        },
        {"prompt": PROMPT.format(question="Who are you?"), "response": "Thought: I now know.\nFinal Answer: Qwen."},
        {"prompt": PROMPT.format(question="Hello!"), "source": "another key"},
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def test_the_published_plugin_benchmark_is_a_suite(tmp_path: Path) -> None:
    cases = load_suite(plugin_suite(tmp_path / "positive.jsonl"), ToolCase)
    assert [case.language for case in cases] == ["zh", "en", "en", "en"]
    assert [case.expected and case.expected.name for case in cases] == ["weather", "image_gen", None, None]
    assert cases[0].expected is not None and cases[0].expected.arguments == {"city": "杭州", "days": 2}
    assert cases[0].messages == [{"role": "user", "content": PROMPT.format(question="杭州的天气怎么样？")}]
    with pytest.raises(ConfigError, match="line 1"):
        load_suite(tmp_path / "positive.jsonl", ChatCase)


@pytest.mark.parametrize(
    ("text", "tool", "arguments"),
    [
        (RIGHT, "weather", '{"city": "杭州", "days": 2}'),
        ("Action: weather\nAction Input: {}", "weather", "{}"),
        ("Thought: a\nAction: weather", "weather", ""),
        ("Thought: Action: none is needed\nFinal Answer: Hi", None, ""),
        ("Hello!", None, ""),
    ],
)
def test_replies_are_read_as_the_published_script_reads_them(text: str, tool: str | None, arguments: str) -> None:
    read = plugin.read_reply(Answer(text=text))
    assert (read.tool, read.arguments) == (tool, arguments)


def test_the_benchmark_is_asked_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[dict[str, Any]] = []

    async def reply(number: int, body: dict[str, Any], writer: Any) -> bool:
        asked.append(body)
        text = RIGHT if "杭州" in body["messages"][0]["content"] else "Final Answer: Hello."
        writer.write(fixed(200, {"choices": [{"message": {"content": text}}]}))
        return True

    with fake_server(reply) as fake:
        path = plugin_suite(tmp_path / "all.jsonl")
        assert main(["eval", "tools", "--suite", str(path), "--base-url", f"{fake.url}/v1", "--model", "m"]) == 0
    assert all("tools" not in body and body["stop"] == ["Observation:"] for body in asked)
    last = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert last == ["all", "4", "50.0%", "50.0%", "50.0%", "0.0%"]
