"""Hostile schemas: each is refused in a bounded time, and no other request waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from model.contract.errors import EngineUnavailableError, InvalidRequestError
from prompts.schemas.schema import json_rule, whole_grammar
from server.conversion.readers.formats import read_answer_format
from server.grammars import check as grammar_check
from server.grammars import worker as grammar_worker
from server.grammars.check import GrammarChecker
from server.wire.shapes.chat import ChatCompletionRequest
from server.wire.shapes.fields import MAX_CHOICE_TEXTS
from tests.support.grammars import GRAMMARS, HUNGRY
from tests.support.paths import ROOT
from tests.support.vocabulary import byte_tokenizer
from tests.support.wire import Wire

JsonDict = dict[str, Any]
TIME_LIMIT_S = grammar_worker.WAIT_LIMIT_S  # two seconds where the machine has nothing else to do


def nested(depth: int) -> JsonDict:
    schema: JsonDict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


RECURSIVE: JsonDict = {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]}
HOSTILE: dict[str, JsonDict] = {
    "hungry": HUNGRY,
    "itself": {"$ref": "#"},
    "recursive": RECURSIVE,
    "each other": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}},
    },
    "endless list": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "thousands of properties": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(4000)}},
    "many optional properties": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(700)}},
    "exploding": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"a{i}{j}": {"type": "null"}}} for j in range(4)]}
            for i in range(8)
        ]
    },
    "deep": nested(150),
    "long way around": {
        "$ref": "#/$defs/a0",
        "$defs": {
            f"a{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/a{(i + 1) % 2500}"}}, "required": ["a"]}
            for i in range(2500)
        },
    },
    "impossible number": {"type": "integer", "minimum": 5, "maximum": 3},
    "impossible property": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "empty choice": {"enum": []},
    "unknown type": {"type": "banana"},
    "type of no kind": {"type": 5},
    "properties of no kind": {"type": "object", "properties": [1]},
    "required of no kind": {"type": "object", "required": "x"},
    "required of objects": {"type": "object", "properties": {"a": {}}, "required": [{"name": "a"}]},
    "broken pattern": {"type": "string", "pattern": "("},
    "nowhere": {"$ref": "#/$defs/none"},
    "elsewhere": {"$ref": "http://127.0.0.1:1/x.json"},
    "negation": {"not": {}},
}
# As a tool's: those that nothing is left out of. (What is left out of the others is test_tool_schemas' business.)
AS_TOOLS = (
    "hungry", "itself", "recursive", "each other", "endless list", "long way around", "impossible property",
)  # fmt: skip
# As a tool's, these make the prompt too long for the context.
TOO_LONG = ("thousands of properties", "many optional properties", "deep", "exploding")


@contextmanager
def a_flowing_stream(wire: Wire) -> Iterator[list[float]]:
    """Keeps a stream going; yields the times between its events, as they come."""
    gaps: list[float] = []
    done = threading.Event()

    def read() -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1800, "ignore_eos": True, "stream": True}
        while not done.is_set():
            with httpx.stream(
                "POST", str(wire.http.base_url.join("/v1/chat/completions")), json=body, timeout=30
            ) as response:
                last = time.monotonic()
                for _ in response.iter_lines():
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                    if done.is_set():
                        return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield gaps
    finally:
        done.set()
        thread.join()


def assert_refused(wire: Wire, body: JsonDict) -> None:
    started = time.monotonic()
    wire.refused(**body)
    assert time.monotonic() - started < TIME_LIMIT_S


def assert_answered(wire: Wire, body: JsonDict) -> None:
    started = time.monotonic()
    messages = [{"role": "user", "content": "hi"}]
    assert wire.ok("/v1/chat/completions", {"messages": messages, "max_tokens": 2, **body})
    assert time.monotonic() - started < TIME_LIMIT_S


def test_they_are_refused_while_others_are_served(wire: Wire) -> None:
    with a_flowing_stream(wire) as gaps:
        for name, schema in HOSTILE.items():
            assert_refused(wire, {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
            function = {"name": "f", "parameters": schema}
            if name in AS_TOOLS:
                assert_refused(wire, {"tools": [{"type": "function", "function": function}]})
            elif name not in TOO_LONG:
                assert_refused(wire, {"tools": [{"type": "function", "function": {**function, "strict": True}}]})
                tool = {"type": "function", "function": function}
                assert_answered(wire, {"tools": [tool], "tool_choice": "required"})
        for text in (
            "/.*a.{15}/ & /.*b.{14}/ & /.*c.{13}/ & ~/.*d.{12}/",
            "(" * 9999 + '"a"' + ")" * 9999,
            "a " * 90000,
        ):
            assert_refused(wire, {"structured_outputs": {"grammar": f"start: A\nA: {text}\na: /x/\n"}})
        assert_refused(wire, {"structured_outputs": {"grammar": "root ::= " + "(" * 9999}})
        assert_refused(wire, {"structured_outputs": {"regex": "x" * 300_000}})
    assert len(gaps) > 100
    assert max(gaps) < 1, "the loop stood still"


def test_a_crowd_of_them_does_not_shut_out_an_honest_one(wire: Wire) -> None:
    def ask(number: int) -> None:
        schema = {**HUNGRY, "title": f"{number}"}
        body = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        messages = [{"role": "user", "content": "hi"}]
        # All together they may be too much for the machine, which then asks to try again.
        assert wire.http.post("/v1/chat/completions", json={"messages": messages, **body}).status_code in (400, 503)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(5)]
    for thread in threads:
        thread.start()
    assert wire.choice(structured_outputs={"choice": ["honest"]})["content"] == "honest"
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "maxItems": 1}]},
        {
            "type": "object",
            "properties": {f"p{i}": {"type": "null"} for i in range(100)},
            "additionalProperties": False,
        },
    ],
)
def test_large_and_recursive_is_not_hostile(wire: Wire, schema: JsonDict) -> None:
    wire.choice(response_format={"type": "json_schema", "json_schema": {"schema": schema}}, max_tokens=3)


async def test_a_worker_that_died_is_started_again() -> None:
    await GRAMMARS.check({'start: "a"': "it"}, param="p")
    process = GRAMMARS._worker._process
    assert process is not None
    process.kill()
    process.wait()
    await GRAMMARS.check({'start: "b"': "it"}, param="p")
    assert GRAMMARS._worker._process is not process


async def test_what_came_of_a_trial_is_remembered_but_not_that_time_ran_out() -> None:
    for grammar in ('start: "c"', "start: nothing"):
        for _ in range(2):
            with pytest.raises(InvalidRequestError) if "nothing" in grammar else pytest.MonkeyPatch.context():
                await GRAMMARS.check({grammar: "it"}, param="p")
    num_remembered = len(GRAMMARS._verdicts)
    endless = "start: A\nA: /.*a.{15}/ & /.*b.{14}/ & /.*c.{13}/ & ~/.*d.{12}/\n"
    with pytest.raises(InvalidRequestError, match="too complex"):
        await GRAMMARS.check({endless: "it"}, param="p")
    assert len(GRAMMARS._verdicts) == num_remembered


async def test_a_closed_checker_refuses() -> None:
    checker = GrammarChecker(byte_tokenizer())
    checker._worker.close()
    with pytest.raises(EngineUnavailableError):
        await checker.check({'start: "a"': "it"}, param="p")
    checker.close()


def test_a_worker_that_hangs_before_it_reads_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is larger than a pipe holds; writing it must not block other trials."""
    started: list[str] = []

    def hang(module: str, *_: str) -> list[str]:
        started.append(module)
        return [sys.executable, "-S", "-c", "import time; time.sleep(60)"]

    monkeypatch.setattr(grammar_check, "module_command", hang)
    monkeypatch.setattr(grammar_check, "pack_ranks", lambda _: b"x" * (1 << 20))
    monkeypatch.setattr(grammar_check, "_START_TIMEOUT_S", 0.01)
    worker = grammar_check.GrammarWorker(byte_tokenizer())
    with pytest.raises(EngineUnavailableError, match="cannot be compiled now"):
        worker.judge(["start: /a/"])
    assert len(started) == 2
    worker.close()


class _SlowerAndSlower:
    """A grammar of which each token takes a millisecond more than the one before."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.spent_s = 0.0

    def compute_bitmask(self) -> bytes:
        self.spent_s += 0.001 * len(self.tokens)
        return b"\x02\x00\x80"  # tokens 1 and 23

    def consume_token(self, token_id: int) -> bool:
        self.tokens.append(token_id)
        return True

    def is_stopped(self) -> bool:
        return False

    def is_error(self) -> bool:
        return False


class _Lengths:
    def token_bytes(self, token_id: int) -> bytes:
        return b"x" * token_id


def test_a_grammar_is_followed_deep_along_long_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice falls behind by the time that its tokens took beyond 5 ms each."""
    grammar = _SlowerAndSlower()
    monkeypatch.setattr(grammar_worker.time, "process_time", lambda: grammar.spent_s)  # type: ignore[attr-defined]
    monkeypatch.setattr(grammar_worker, "_DEEP_S", 100.0)
    behind_s = grammar_worker._walk(grammar, _Lengths())  # type: ignore[arg-type]
    assert grammar.tokens == [1] * 8 + [23] * 56
    assert behind_s == pytest.approx(sum(0.001 * i - 0.005 for i in range(6, 64)))


async def test_what_a_grammar_takes_counts_for_each_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = GrammarChecker(byte_tokenizer())
    monkeypatch.setattr(checker._worker, "judge", lambda grammars: [(None, 0.1)] * len(grammars))
    await checker.check({"it": "'it'"}, param="p", num_choices=49)
    with pytest.raises(InvalidRequestError, match="too long to follow for 51 choices"):
        await checker.check({"it": "'it'"}, param="p", num_choices=51)
    checker.close()


@pytest.mark.parametrize(("judge", "answer"), [("time.sleep(0.2) or (None, 0)", [[None, 0]]), ("spin()", None)])
def test_only_the_work_on_a_grammar_is_limited_not_the_wait_for_a_busy_machine(judge: str, answer: object) -> None:
    code = f"""
import itertools, json, os, socket, time
from server.grammars import worker as grammar_worker
def spin():
    for _ in itertools.count():
        pass
grammar_worker.TIME_LIMIT_S = 0.05
grammar_worker._judge = lambda *_: {judge}
ours, theirs = socket.socketpair()
if os.fork() == 0:
    ours.close()
    grammar_worker._run_trial(theirs, None, None)
theirs.close()
ours.sendall(b'["a grammar"]')
ours.shutdown(socket.SHUT_WR)
print(json.dumps(b"".join(iter(lambda: ours.recv(4096), b"")).removeprefix(grammar_worker.STARTED).decode()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert (json.loads(said) if said else None) == answer


async def test_a_machine_that_has_no_time_for_a_schema_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a schema had its CPU time does a killed trial mean that it is too complex."""
    for limit_s, error in ((0.0, EngineUnavailableError), (60.0, InvalidRequestError)):
        monkeypatch.setattr(grammar_check, "WAIT_LIMIT_S", limit_s)
        with pytest.raises(error, match=r"try again later|too complex"):
            await GRAMMARS.check({whole_grammar(json_rule(HUNGRY)): "it"}, param="p")


async def test_as_many_choices_as_a_request_may_have_are_followed() -> None:
    wishes = {"structured_outputs": {"choice": [f"choice number {number}" for number in range(MAX_CHOICE_TEXTS)]}}
    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **wishes})
    answer = read_answer_format(request, request.response_format)
    assert answer is not None
    await GRAMMARS.check({answer.as_grammar(): "it"}, param="p", num_choices=128)
