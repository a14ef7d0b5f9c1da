"""What counts as right, and which suites can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.contract.errors import ConfigError
from tests.support.paths import ROOT
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
