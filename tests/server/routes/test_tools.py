"""Tools and functions against the real server, each request streamed and not (Wire.chat compares the two)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hypothesis_settings import BATCHES
from tests.support.server_process import ServerProcess
from tests.support.wire import CLOCK, TOOLS, WEATHER, Wire, allowed, named

JsonDict = dict[str, Any]
SEEDED: JsonDict = {"temperature": 1, "seed": 3}
CALLED = [
    {"role": "user", "content": "time?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
    },
]
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "noon"}


def assert_weather(choice: JsonDict, reason: str = "tool_calls") -> None:
    assert choice["finish_reason"] == reason
    (call,) = choice["calls"]
    assert call["name"] == "get_weather"
    jsonschema.validate(json.loads(call["arguments"]), WEATHER["parameters"])
    assert choice["content"] == ""


@pytest.mark.parametrize("seed", range(3))
def test_a_named_tool_is_called(wire: Wire, seed: int) -> None:
    assert_weather(wire.choice(tools=TOOLS, tool_choice=named("get_weather"), temperature=1, seed=seed))


def test_some_tool_is_called_where_one_must_be(wire: Wire) -> None:
    for seed in range(4):
        choice = wire.choice(tools=TOOLS, tool_choice="required", temperature=1, seed=seed)
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["calls"]
        schemas = {"get_weather": WEATHER["parameters"], "clock": {"const": {}}}
        jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])


def test_only_allowed_tools_are_called(wire: Wire) -> None:
    choice = wire.choice(tools=TOOLS, tool_choice=allowed("required", "clock"), **SEEDED)
    assert choice["calls"] == [{"name": "clock", "arguments": "{}"}]
    assert not wire.choice(tools=TOOLS, tool_choice=allowed("auto", "clock"), max_tokens=5)["calls"]


def test_none_calls_nothing_and_auto_may_talk(wire: Wire) -> None:
    for choice in ("none", "auto"):
        reply = wire.choice(tools=TOOLS, tool_choice=choice, max_tokens=20, **SEEDED)
        assert not reply["calls"]
        assert reply["content"]
        assert reply["finish_reason"] in ("length", "stop")


def test_legacy_functions(wire: Wire) -> None:
    functions = [WEATHER, CLOCK]
    assert_weather(wire.choice(functions=functions, function_call={"name": "get_weather"}, **SEEDED), "function_call")
    raw = wire.ok(
        "/v1/chat/completions",
        {
            "messages": CALLED[:1],
            "functions": functions,
            "function_call": {"name": "clock"},
            "max_tokens": 50,
        },
    )
    message = raw["choices"][0]["message"]
    assert message["function_call"] == {"name": "clock", "arguments": "{}"}
    assert "tool_calls" not in message
    for choice in ("none", "auto"):
        assert not wire.choice(functions=functions, function_call=choice, max_tokens=9, **SEEDED)["calls"]
    history = [
        CALLED[0],
        {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}},
        {"role": "function", "name": "clock", "content": "noon"},
    ]
    assert_weather(
        wire.choice(messages=history, functions=functions, function_call={"name": "get_weather"}), "function_call"
    )
    # Results in the published server's form, which knew no name.
    del history[2]["name"]  # type: ignore[attr-defined]
    reply = wire.ok("/v1/chat/completions", {"messages": history, "max_tokens": 2})
    assert reply["choices"][0]["message"]["function_call"] is None
    shown = wire.ok("/detokenize", {"tokens": wire.ok("/tokenize", {"messages": history})["tokens"]})["prompt"]
    assert "Action: clock\nAction Input: {}\nObservation: noon\n" in shown


def test_descriptions_in_the_style_of_qwen(wire: Wire) -> None:
    qwen = {
        "name_for_model": "image_gen",
        "name_for_human": "文生图",
        "description_for_model": "Draws a picture.",
        "parameters": [
            {"name": "query", "description": "what", "required": True, "schema": {"type": "string", "maxLength": 4}},
            {"name": "size", "required": False, "schema": {"enum": [1, 2]}},
        ],
    }
    schema = {
        "type": "object",
        "properties": {"query": {"type": "string", "maxLength": 4}, "size": {"enum": [1, 2]}},
        "required": ["query"],
        "additionalProperties": False,
    }
    for seed in range(3):
        choice = wire.choice(functions=[qwen], function_call={"name": "image_gen"}, temperature=1, seed=seed)
        assert choice["finish_reason"] == "function_call"
        jsonschema.validate(json.loads(choice["calls"][0]["arguments"]), schema)
    wrapped = wire.choice(tools=[{"type": "function", "function": qwen}], tool_choice="required")
    assert wrapped["calls"][0]["name"] == "image_gen"


def test_a_call_cut_by_length_says_so(wire: Wire) -> None:
    whole = wire.choice(tools=TOOLS, tool_choice=named("get_weather"), return_token_ids=True)
    num_tokens = len(whole["token_ids"])
    arguments = whole["calls"][0]["arguments"]
    for cut in {1, 2, 9, num_tokens // 2, num_tokens - 2, num_tokens - 1}:
        choice = wire.choice(tools=TOOLS, tool_choice=named("get_weather"), max_tokens=cut)
        assert choice["finish_reason"] == "length"
        (call,) = choice["calls"]
        assert call["arguments"] == "{}" or arguments.startswith(call["arguments"].rstrip("\ufffd"))
    exact = wire.choice(tools=TOOLS, tool_choice=named("get_weather"), max_tokens=num_tokens)
    assert (exact["finish_reason"], exact["calls"]) == ("tool_calls", whole["calls"])
    for cut in (1, 5, 12, 30):  # in the name, and in its arguments
        choice = wire.choice(tools=TOOLS, tool_choice=allowed("required", "get_weather"), max_tokens=cut)
        assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("choice", ["required", named("get_weather")])
def test_stop_strings_cut_no_call(wire: Wire, choice: Any) -> None:
    tools = TOOLS[:1]
    free = wire.choice(tools=tools, tool_choice=choice)
    for stop in ("\n", "}", ["{", '"unit', "Action"]):
        assert wire.choice(tools=tools, tool_choice=choice, stop=stop) == free
    assert_weather(free)


def test_usage_counts_what_was_generated(wire: Wire) -> None:
    reply = wire.chat(tools=TOOLS, tool_choice="required", n=3, return_token_ids=True, **SEEDED)
    assert reply["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in reply["choices"])
    with_tools = reply["usage"]["prompt_tokens"]
    assert with_tools > wire.chat(tools=TOOLS, tool_choice="none", max_tokens=1)["usage"]["prompt_tokens"]


def test_ids_are_unique(wire: Wire) -> None:
    body = {"messages": CALLED[:1], "tools": TOOLS, "tool_choice": named("clock"), "n": 4, "max_tokens": 50}
    replies = [wire.ok("/v1/chat/completions", body) for _ in range(2)]
    ids = [call["id"] for reply in replies for c in reply["choices"] for call in c["message"]["tool_calls"]]
    assert len(set(ids)) == 8
    assert all(id.startswith("call_") for id in ids)
    assert len({reply["id"] for reply in replies}) == 2


def test_conversations_of_several_steps(wire: Wire) -> None:
    assert_weather(wire.choice(messages=[*CALLED, RESULT], tools=TOOLS, tool_choice=named("get_weather")))
    assert wire.choice(messages=[*CALLED, RESULT], tools=TOOLS, tool_choice="none", max_tokens=9, **SEEDED)["content"]
    again = [*CALLED, RESULT, {"role": "assistant", "content": "It is noon."}, {"role": "user", "content": "Sure?"}]
    assert wire.choice(messages=again, tools=TOOLS, tool_choice="required")["finish_reason"] == "tool_calls"
    assert wire.choice(messages=again, max_tokens=9, **SEEDED)["finish_reason"] in ("length", "stop")
    two = {
        "role": "assistant",
        "content": "both",
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": "clock", "arguments": "{}"}} for id in ("a", "b")
        ],
    }
    results = [{"role": "tool", "tool_call_id": id, "content": [{"type": "text", "text": id}]} for id in ("b", "a")]
    messages = [CALLED[0], two, *results]
    assert wire.choice(messages=messages, tools=TOOLS, tool_choice=named("clock"))["calls"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [*CALLED, {**RESULT, "tool_call_id": "c2"}]}, "messages[2]"),
        ({"messages": [*CALLED, RESULT, {"role": "tool", "content": "x"}]}, "messages[3]"),
        ({"messages": [RESULT, CALLED[0]]}, "messages[0]"),
        ({"messages": CALLED}, "messages[1]"),
        ({"messages": [CALLED[0], {**CALLED[1], "role": "user", "content": "x"}]}, "messages[1]"),
        (
            {"messages": [CALLED[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, RESULT]},
            "messages[1].tool_calls[0].id",
        ),
        ({"tools": TOOLS, "tool_choice": named("nope")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "clock", "nope")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("never", "clock")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [CLOCK], "function_call": "required"}, "function_call"),
        ({"functions": [CLOCK], "function_call": {"name": "nope"}}, "function_call"),
        ({"functions": [CLOCK], "tool_choice": "auto"}, "tool_choice"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": TOOLS, "functions": [CLOCK]}, "functions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": "clock"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"description": "x"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a\nb"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "Final Answer: x"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].function"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"functions": [{"name": "f", "parameters": "x"}]}, "functions[0].parameters"),
        ({"functions": [{"name": "f", "parameters": [{"schema": {}}]}]}, "functions[0].parameters"),
    ],
)
def test_what_makes_no_sense_is_refused(wire: Wire, body: JsonDict, param: str) -> None:
    assert wire.refused(**body)["param"] == param


# -- arguments of many schemas

names = st.sampled_from(["a", "b_c", "城市", "it's", 'q"uote', "Action: x", "\n"])
leaves = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -5, "maximum": 99},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{1,3}$"},
        {"type": "string", "format": "date"},
        {"enum": ["x", 1, None, "\nObservation:", "<|im_end|>"]},
        {"const": {"a": [1, "two"]}},
        {"type": ["integer", "null"], "minimum": 1, "maximum": 3},
    ]
)


def make_object(properties: JsonDict, mask: int) -> JsonDict:
    required = [name for index, name in enumerate(properties) if mask >> index & 1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


schemas = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.builds(make_object, st.dictionaries(names, children, max_size=3), st.integers(0, 7)),
        st.builds(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 2}, children),
        st.builds(lambda one, other: {"anyOf": [one, other]}, children, children),
    ),
    max_leaves=5,
)
parameters = st.builds(make_object, st.dictionaries(names, schemas, max_size=3), st.integers(0, 7)).filter(
    lambda schema: len(json.dumps(schema)) < 900  # the prompt holds it, a token a character
)


@settings(BATCHES, max_examples=4)
@given(cases=st.lists(st.tuples(parameters, st.integers(0, 1000)), min_size=12, max_size=12))
def test_arguments_fit_their_schema(server: ServerProcess, cases: list[tuple[JsonDict, int]]) -> None:
    async def ask(http: httpx.AsyncClient, schema: JsonDict, seed: int) -> None:
        body = {
            "messages": CALLED[:1],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "tool_choice": "required",
            "temperature": 1,
            "seed": seed,
            "max_tokens": 300,
        }
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, (schema, response.text)
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "tool_calls", schema
        (call,) = choice["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            await asyncio.gather(*(ask(http, *case) for case in cases))

    asyncio.run(run())
