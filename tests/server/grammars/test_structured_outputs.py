"""Replies that must follow a format, from the real server, streamed and unstreamed."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from tests.support.wire import TOOLS, WEATHER, Wire, named

JsonDict = dict[str, Any]
SCHEMA = WEATHER["parameters"]
JSON_SCHEMA: JsonDict = {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": SCHEMA}}
SEEDED: JsonDict = {"temperature": 1, "seed": 4}
CHOICES = ["yes", 'no "thanks"', "back\\slash/", "two\nlines", "中文🙂"]
LARK = 'start: word (", " word)*\nword: /[a-c]{2}/ | NUMBER\nNUMBER: /[0-9]{1,3}/\n'
GBNF = 'root ::= "yes " name\nname ::= [a-f]{3} | "nobody"\n'


def test_json_objects(wire: Wire) -> None:
    # A random model rarely finds the end of an object; what it writes is the beginning of one.
    choice = wire.choice(response_format={"type": "json_object"}, max_tokens=40, **SEEDED)
    assert choice["content"].startswith("{")
    empty = wire.choice(response_format={"type": "json_object"}, logit_bias={"125": 100, "123": 100})
    assert (json.loads(empty["content"]), empty["finish_reason"]) == ({}, "stop")


@pytest.mark.parametrize(
    "wish",
    [
        {"response_format": JSON_SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    ],
)
def test_json_of_a_schema(wire: Wire, wish: JsonDict) -> None:
    for seed in range(2):
        choice = wire.choice(**wish, temperature=1, seed=seed)
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["content"]), SCHEMA)


def test_one_of_some_texts(wire: Wire) -> None:
    replies = {wire.choice(structured_outputs={"choice": CHOICES}, temperature=2, seed=s)["content"] for s in range(6)}
    assert replies <= set(CHOICES)
    assert len(replies) > 1
    for text in CHOICES:
        assert wire.choice(structured_outputs={"choice": [text]})["content"] == text


@pytest.mark.parametrize("pattern", [r"[a-c]{3}/\d{1,2}\/x\.", "two\nlines?", "\\\n|\\\\/", "^(yes|no)$", "(?i)ABC"])
def test_regular_expressions(wire: Wire, pattern: str) -> None:
    choice = wire.choice(structured_outputs={"regex": pattern}, **SEEDED)
    assert re.fullmatch(pattern, choice["content"])
    assert choice["finish_reason"] == "stop"


def test_grammars_in_either_notation(wire: Wire) -> None:
    word = "([a-c]{2}|[0-9]{1,3})"
    lark = wire.choice(structured_outputs={"grammar": LARK}, max_tokens=12, **SEEDED)
    if lark["finish_reason"] == "stop":
        assert re.fullmatch(f"{word}(, {word})*", lark["content"])
    else:
        assert re.match(word[:-1] + "|[a-c])", lark["content"])
    gbnf = wire.choice(structured_outputs={"grammar": GBNF}, **SEEDED)
    assert re.fullmatch("yes ([a-f]{3}|nobody)", gbnf["content"])


def test_completions_are_held_to_formats_too(wire: Wire) -> None:
    def complete(**wishes: Any) -> JsonDict:
        reply = wire.ok("/v1/completions", {"prompt": ["It is ", "So "], "max_tokens": 60, **wishes})
        first: JsonDict = reply["choices"][0]
        assert {choice["finish_reason"] for choice in reply["choices"]} == {"stop"}
        return first

    assert complete(structured_outputs={"choice": CHOICES})["text"] in CHOICES
    jsonschema.validate(json.loads(complete(structured_outputs={"json": SCHEMA})["text"]), SCHEMA)
    assert re.fullmatch("a{3}b?", complete(structured_outputs={"regex": "a{3}b?"})["text"])
    assert complete(structured_outputs={"grammar": GBNF}, echo=True)["text"].startswith("It is yes ")
    scored = wire.ok(
        "/v1/completions",
        {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0, "structured_outputs": {"choice": ["x"]}},
    )
    assert scored["choices"][0]["text"] == "abc"


def test_other_wishes_do_not_break_a_format(wire: Wire) -> None:
    yes: JsonDict = {"structured_outputs": {"choice": ["yes"]}}
    for wish in (
        {"min_tokens": 10},
        {"ignore_eos": True},
        {"logit_bias": {"120": 100}},
        {"top_k": 1, "top_p": 0.01, "temperature": 2},
        {"max_tokens": 3},
        {"repetition_penalty": 5.0, "presence_penalty": 2},
        {"logprobs": True, "top_logprobs": 5},
    ):
        choice = wire.choice(**yes, **wish)
        assert (choice["content"], choice["finish_reason"]) == ("yes", "stop")
    assert wire.choice(**yes, max_tokens=2)["finish_reason"] == "length"
    stopped = wire.choice(**yes, stop="s")
    assert (stopped["content"], stopped["finish_reason"], stopped["stop_reason"]) == ("ye", "stop", "s")
    many = wire.chat(structured_outputs={"choice": CHOICES}, n=4, temperature=2, seed=1)["choices"]
    assert {choice["content"] for choice in many} <= set(CHOICES)
    assert len({choice["content"] for choice in many}) > 1


def test_a_format_and_tools(wire: Wire) -> None:
    called = wire.choice(tools=TOOLS, tool_choice=named("get_weather"), response_format=JSON_SCHEMA)
    assert called["finish_reason"] == "tool_calls"
    jsonschema.validate(json.loads(called["calls"][0]["arguments"]), SCHEMA)
    answered = wire.choice(tools=TOOLS, tool_choice="none", response_format=JSON_SCHEMA)
    jsonschema.validate(json.loads(answered["content"]), SCHEMA)
    # Where the model may choose, it thinks first or answers at once; this one is made to answer.
    free = wire.choice(tools=TOOLS, response_format=JSON_SCHEMA, logit_bias={"123": 100, "84": -100})
    jsonschema.validate(json.loads(free["content"]), SCHEMA)
    assert (free["finish_reason"], free["calls"]) == ("stop", [])
    thinking = wire.choice(
        tools=TOOLS,
        structured_outputs={"choice": ["yes"]},
        logit_bias={"84": 100, "121": -100, "65": -100},
        max_tokens=9,
    )
    assert thinking["finish_reason"] == "length"
    result = [
        {"role": "user", "content": "time?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    for wishes in ({"tools": TOOLS, "tool_choice": "none"}, {}):
        answer = wire.choice(messages=result, response_format=JSON_SCHEMA, **wishes)
        jsonschema.validate(json.loads(answer["content"]), SCHEMA)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"structured_outputs": {"json": "5"}}, "structured_outputs"),
        ({"structured_outputs": {"json": '{"items": ' * 3000 + "{}" + "}" * 3000}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"const": "x" * 300_000}}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= ]["}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": LARK}, "tools": TOOLS}, "structured_outputs"),
    ],
)
def test_what_makes_no_sense_is_refused(wire: Wire, body: JsonDict, param: str) -> None:
    assert wire.refused(**body)["param"] == param


@pytest.mark.parametrize("kind", ["regex", "grammar", "choice"])
def test_half_a_surrogate_pair_is_refused(wire: Wire, kind: str) -> None:
    text = 'start: "\ud800"' if kind == "grammar" else "\ud800"
    wish = {kind: [text] if kind == "choice" else text}
    body = {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": wish}
    response = wire.http.post("/v1/chat/completions", content=json.dumps(body))  # httpx does not write it itself
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "structured_outputs"
