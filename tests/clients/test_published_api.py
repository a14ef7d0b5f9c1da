"""Each row of docs/from-openai-api-py.md, with requests of the shapes that clients of the published server send."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from model.contract.errors import InvalidRequestError
from model.contract.messages import EngineReady
from server.cli.published_flags import translate
from server.config.sources import load_settings
from server.conversion.converter import Converter
from server.conversion.defaults import GenerationDefaults
from server.conversion.generation_request import GenerationRequest
from server.conversion.prompt_encoding import PromptEncoder
from server.conversion.readers.chat import read_chat
from server.gates.credentials import Credentials
from server.gates.gate import refusal
from server.settings import Settings
from server.wire.shapes.chat import ChatCompletionRequest
from tests.support.grammars import GRAMMARS
from tests.support.paths import ROOT
from tests.support.vocabulary import byte_tokenizer
from tests.support.wire import Wire, events

JsonDict = dict[str, Any]
Check = Callable[[Wire], Any]

PAGE = ROOT / "docs" / "from-openai-api-py.md"
USER = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "hello"}
WEATHER = {"name": "get_weather", "description": "d", "parameters": {"type": "object", "properties": {"city": {}}}}
CALLED = {"role": "assistant", "content": "", "function_call": {"name": "get_weather", "arguments": '{"city": "P"}'}}
RESULT = {"role": "function", "content": "sunny"}
DEFAULTS = GenerationDefaults(temperature=0.7, top_p=0.6, top_k=5, max_window_size=100)
ENGINE = EngineReady(4000, 512, 9, 16, 1, 1, "float32", "cpu")
CHECKS: dict[str, Check] = {}


def rows() -> dict[str, str]:
    """The first cell of each row of the page's tables, and the rest of the row."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.endswith(("| here |", "| `qwen-server serve` |")):
            first, _, rest = line.removeprefix("| ").removesuffix(" |").partition(" | ")
            found[first] = rest
    return found


def row(first_cell: str) -> Callable[[Check], Check]:
    """Marks the check of a row."""

    def keep(check: Check) -> Check:
        CHECKS[first_cell] = check
        return check

    return keep


def test_every_row_has_a_check() -> None:
    assert set(rows()) == set(CHECKS)


@pytest.mark.parametrize("cell", rows())
def test_row(cell: str, wire: Wire) -> None:
    CHECKS[cell](wire)


def ask(wire: Wire, *messages: JsonDict, **body: Any) -> JsonDict:
    return wire.ok("/v1/chat/completions", {"messages": [*messages] or [USER], "max_tokens": 4, **body})


async def convert(*messages: JsonDict, converter: Converter | None = None, **body: Any) -> GenerationRequest:
    converter = converter or Converter(PromptEncoder(byte_tokenizer(), DEFAULTS), GRAMMARS, default_max_tokens=77)
    request = ChatCompletionRequest.model_validate({"messages": [*messages] or [USER], **body})
    return await converter.chat(read_chat(request), ENGINE)


def sampling(**body: Any) -> Any:
    import asyncio

    return asyncio.run(convert(**body)).prompts[0].sampling


def shown(wire: Wire, *messages: JsonDict, **body: Any) -> str:
    tokens = wire.ok("/tokenize", {"messages": [*messages], **body})["tokens"]
    return str(wire.ok("/detokenize", {"tokens": tokens})["prompt"])


# -- starting


@row("`-c CHECKPOINT`, `--checkpoint-path CHECKPOINT`")
def _(wire: Wire) -> None:
    for flag in ("-c", "--checkpoint-path"):
        assert str(translate([flag, "/m"])).endswith("use: qwen-server serve /m")


@row("without `-c`: `Qwen/Qwen-7B-Chat`")
def _(wire: Wire) -> None:
    assert str(translate(["--cpu-only"])).endswith("serve Qwen/Qwen-7B-Chat --device cpu")
    assert "Qwen-7B" not in load_settings({}, {}).model


@row("`--server-name 0.0.0.0`, by default 127.0.0.1")
def _(wire: Wire) -> None:
    assert str(translate(["-c", "m", "--server-name", "0.0.0.0"])).endswith("serve m --host 0.0.0.0")
    assert Settings.model_fields["host"].default == "127.0.0.1"


@row("`--server-port 8000`")
def _(wire: Wire) -> None:
    assert str(translate(["-c", "m", "--server-port", "8000"])).endswith("serve m --port 8000")
    assert Settings.model_fields["port"].default == 8000


@row("`--cpu-only`")
def _(wire: Wire) -> None:
    assert str(translate(["-c", "m", "--cpu-only"])).endswith("serve m --device cpu")


@row("`--disable-gc`")
def _(wire: Wire) -> None:
    assert "serve m (--disable-gc has nothing to do here)" in str(translate(["-c", "m", "--disable-gc"]))


@row("`--api-auth user:password`")
def _(wire: Wire) -> None:
    settings = load_settings({"model": "m", "api_auth": "user:password", "api_key": ("k",)}, {})
    credentials = settings.credentials()
    assert credentials.basic_digest is not None and credentials.caller("Bearer k") is not None


@row("web pages of any origin may call it")
def _(wire: Wire) -> None:
    assert load_settings({"model": "m", "cors_allow_origin": ("*",)}, {}).cors_allow_origin == ("*",)


# -- routes and headers

OPEN = Credentials.from_secrets((), "user:password")
TOKEN = base64.b64encode(b"user:password").decode()


@row("`GET /v1/models`: one, `gpt-3.5-turbo`")
def _(wire: Wire) -> None:
    card = wire.http.get("/v1/models").json()["data"][0]
    assert card["object"] == "model" and {"id", "created", "owned_by", "max_model_len"} <= set(card)
    names = load_settings({"model": "m", "served_model_name": ("gpt-3.5-turbo",)}, {}).served_names
    assert names == ("gpt-3.5-turbo",)


@row("`POST /v1/chat/completions`")
def _(wire: Wire) -> None:
    assert ask(wire, USER, model="Qwen")["choices"]


@row("`GET /docs`")
def _(wire: Wire) -> None:
    assert wire.http.get("/docs").status_code == 200


@row("`Authorization: Basic base64(user:password)`")
def _(wire: Wire) -> None:
    assert OPEN.caller(f"Basic {TOKEN}") is not None


@row("`Authorization: Bearer base64(user:password)`")
def _(wire: Wire) -> None:
    assert OPEN.caller(f"Bearer {TOKEN}") == OPEN.caller(f"Basic {TOKEN}") is not None


@row("401 with no body, `WWW-Authenticate: Basic`")
def _(wire: Wire) -> None:
    response = refusal(OPEN, None).response()
    assert response.status_code == 401 and response.headers["www-authenticate"].startswith("Basic")
    assert b'"invalid_api_key"' in bytes(response.body)


# -- requests


@row("`model`")
def _(wire: Wire) -> None:
    assert ask(wire, USER)["model"]
    response = wire.http.post("/v1/chat/completions", json={"messages": [USER], "model": "gpt-3.5-turbo"})
    assert response.status_code == 404
    assert "*" in load_settings({"model": "m", "served_model_name": ("*",)}, {}).served_model_name


@row("`messages[].role`")
def _(wire: Wire) -> None:
    ask(wire, {"role": "system", "content": "s"}, USER, SAID, {"role": "developer", "content": "d"}, USER)


@row("`messages[].content`")
def _(wire: Wire) -> None:
    ask(wire, {"role": "user", "content": [{"type": "text", "text": "hi"}]}, SAID, USER)
    ask(wire, USER, {**CALLED, "content": None}, RESULT)


@row("`messages[].function_call`")
def _(wire: Wire) -> None:
    prompt = shown(wire, USER, CALLED, RESULT, functions=[WEATHER])
    assert 'Thought: \nAction: get_weather\nAction Input: {"city": "P"}\nObservation: sunny\nThought:' in prompt
    bare = {"role": "assistant", "content": "", "function_call": {"name": "get_weather"}}
    assert "Action Input: {}\n" in shown(wire, USER, bare, RESULT)


@row("`messages[].name`")
def _(wire: Wire) -> None:
    assert shown(wire, USER, CALLED, RESULT) == shown(wire, USER, CALLED, {**RESULT, "name": "get_weather"})


@row("`functions`")
def _(wire: Wire) -> None:
    qwen = {"name_for_human": "W", "name_for_model": "get_weather", "description_for_model": "d", "parameters": []}
    line = "get_weather: Call this tool to interact with the W API. What is the W API useful for? d Parameters: []"
    assert line in shown(wire, USER, functions=[qwen])
    assert '{"type": "object", "properties": {}}' in shown(wire, USER, functions=[{"name": "f"}])


@row("`temperature`")
def _(wire: Wire) -> None:
    assert sampling().temperature == 0.7
    assert [sampling(temperature=value).temperature for value in (0, 0.005, 5)] == [0, 0.005, 5]
    ask(wire, temperature=1000)


@row("`top_p`")
def _(wire: Wire) -> None:
    assert (sampling().top_p, sampling(top_p=0.9).top_p) == (0.6, 0.9)
    assert sampling(top_p=0).temperature == 0


@row("`top_k`")
def _(wire: Wire) -> None:
    assert [sampling(**body).top_k for body in ({}, {"top_k": 1}, {"top_k": 0}, {"top_k": -1})] == [5, 1, 0, 0]


@row("`max_length`")
def _(wire: Wire) -> None:
    prompt = ask(wire)["usage"]["prompt_tokens"]
    assert sampling(max_length=prompt + 3, max_tokens=9).max_tokens == 3
    assert sampling(max_length=1).max_tokens == 1
    assert sampling(max_length=4000, max_tokens=9).max_tokens == 9
    usage = ask(wire, max_length=prompt + 3, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == prompt + 3


@row("no limit")
def _(wire: Wire) -> None:
    assert sampling().max_tokens == 77
    assert load_settings({"model": "m", "default_max_tokens": "12"}, {}).default_max_tokens == 12


@row("`stop`")
def _(wire: Wire) -> None:
    def said(stop: Any) -> str:
        return str(wire.choice(structured_outputs={"choice": ["ab\nX"]}, stop=stop)["content"])

    assert (said(["b"]), said("b"), said(["\nX"]), said(["\nab"])) == ("a", "a", "ab", "ab\nX")


@row("`stream`")
def _(wire: Wire) -> None:
    choice = wire.choice(functions=[WEATHER], function_call={"name": "get_weather"})  # asks for both, and compares
    assert choice["calls"][0]["name"] == "get_weather"


# -- replies


@row("`id`, `usage`")
def _(wire: Wire) -> None:
    reply = ask(wire)
    assert reply["id"].startswith("chatcmpl-") and reply["usage"]["total_tokens"] > 0


@row("`object`, `created`, `model`")
def _(wire: Wire) -> None:
    reply = ask(wire, model="Qwen")
    assert (reply["object"], reply["model"]) == ("chat.completion", "Qwen") and reply["created"] > 0


def message_of(wire: Wire, **body: Any) -> JsonDict:
    message = ask(wire, **{"max_tokens": 60, **body})["choices"][0]["message"]
    assert isinstance(message, dict)
    return message


@row("`message.content`")
def _(wire: Wire) -> None:
    named = {"name": "get_weather"}
    assert message_of(wire, functions=[WEATHER], function_call=named)["content"] == ""
    tools = [{"type": "function", "function": WEATHER}]
    assert message_of(wire, tools=tools, tool_choice="required")["content"] is None
    assert isinstance(message_of(wire, max_tokens=2)["content"], str)


@row("`message.function_call`")
def _(wire: Wire) -> None:
    assert message_of(wire, functions=[WEATHER], function_call="none", max_tokens=2)["function_call"] is None
    assert "function_call" not in message_of(wire, max_tokens=2)


@row("`function_call.arguments`")
def _(wire: Wire) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": [7]}}, "required": ["n"]}
    function = {"name": "f", "parameters": schema}
    called = message_of(wire, functions=[function], function_call={"name": "f"})["function_call"]
    assert re.fullmatch(r'\{"n": ?7\}', called["arguments"])
    code = {"name": "f", "parameters": schema, "args_format": "code"}
    assert sampling(functions=[code], function_call={"name": "f"}).grammar.count("%json") == 0


@row("`finish_reason`")
def _(wire: Wire) -> None:
    assert ask(wire, ignore_eos=True)["choices"][0]["finish_reason"] == "length"
    assert ask(wire, structured_outputs={"choice": ["a"]})["choices"][0]["finish_reason"] == "stop"
    reply = ask(wire, functions=[WEATHER], function_call={"name": "get_weather"}, max_tokens=90)
    assert reply["choices"][0]["finish_reason"] == "function_call"


@row("chunks")
def _(wire: Wire) -> None:
    body = {"messages": [USER], "stream": True, "max_tokens": 20, "structured_outputs": {"choice": ["abc"]}}
    text = wire.http.post("/v1/chat/completions", json=body).text
    assert text.rstrip().endswith("data: [DONE]")
    choices = [event["choices"][0] for event in events(text)]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "abc"
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")


# -- errors


@row("400 Expecting at least one user message")
def _(wire: Wire) -> None:
    ask(wire, {"role": "system", "content": "s"})


@row("400 Expecting role assistant before role function")
def _(wire: Wire) -> None:
    ask(wire, USER, RESULT)


@row("400 Expecting role user before role assistant")
def _(wire: Wire) -> None:
    ask(wire, SAID, USER)


@row("400 Expecting exactly one user (or function) role before every assistant role")
def _(wire: Wire) -> None:
    ask(wire, USER, USER, SAID, SAID, USER)


@row("400 Incorrect role: `system` in the middle")
def _(wire: Wire) -> None:
    ask(wire, USER, {"role": "system", "content": "s"}, USER)


@row("400 Function calling is not yet implemented for stream mode")
def _(wire: Wire) -> None:
    body = {"messages": [USER], "functions": [WEATHER], "stream": True, "max_tokens": 2}
    assert "[DONE]" in wire.http.post("/v1/chat/completions", json=body).text


@row("422 for a field of a wrong type")
def _(wire: Wire) -> None:
    assert wire.refused(top_k="many")["param"] == "top_k"


@row("oldest turns dropped by `max_window_size`, silently")
def _(wire: Wire) -> None:
    import asyncio

    long = [{"role": role, "content": "x" * 400} for role in ("user", "assistant") * 6]
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(convert(*long, USER, max_tokens=1))
    assert caught.value.code == "context_length_exceeded"
    kept = asyncio.run(convert(*long, USER, max_tokens=1, truncation="auto"))
    auto = Converter(PromptEncoder(byte_tokenizer(), DEFAULTS), GRAMMARS, truncation="auto")
    assert asyncio.run(convert(*long, USER, converter=auto, max_tokens=1)).prompts == kept.prompts
    text = byte_tokenizer().decode(kept.prompts[0].ids)
    assert "x" not in text and text.endswith("user\nhi\nassistant\n")


def test_nothing_is_logged_as_unknown(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """The published server's fields are all known, so that none is ignored."""
    fields = {"model": "Qwen", "functions": [WEATHER], "temperature": 0.5, "top_p": 0.8, "top_k": 3, "max_length": 512}
    with caplog.at_level(logging.WARNING):
        sampling(**fields, stream=False, stop=["Observation:"])
    assert not caplog.records


# -- conversations of the shapes that the published examples send, asked at each turn that waits for the model

SEARCH = {
    "name_for_human": "搜索",
    "name_for_model": "web_search",
    "description_for_model": "查资料。 Format the arguments as a JSON object.",
    "parameters": [{"name": "query", "description": "词", "required": True, "schema": {"type": "string"}}],
}
PLAIN_CHAT = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "讲一句话的故事。"},
    {"role": "assistant", "content": "一只猫学会了游泳。"},
    {"role": "user", "content": "起个标题"},
]
QWEN_STYLE = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "谁写了红楼梦"},
    {
        "role": "assistant",
        "content": "Thought: 我应该搜索。",
        "function_call": {"name": "web_search", "arguments": '{"query": "红楼梦"}'},
    },
    {"role": "function", "name": "web_search", "content": "Cao Xueqin wrote it."},
    {"role": "assistant", "content": "曹雪芹。"},
    {"role": "user", "content": "他是哪里人"},
    {
        "role": "assistant",
        "content": "Thought: 我应该搜索。",
        "function_call": {"name": "web_search", "arguments": '{"query": "曹雪芹"}'},
    },
    {"role": "function", "content": "Nanjing"},
]
GPT_STYLE = [
    {"role": "user", "content": "波士顿天气如何？"},
    {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "get_weather", "arguments": '{"city": "Boston, MA"}'},
    },
    {"role": "function", "name": "get_weather", "content": '{"temperature": "22", "description": "Sunny"}'},
]


@pytest.mark.parametrize(
    ("messages", "functions"), [(PLAIN_CHAT, None), (QWEN_STYLE, [SEARCH]), (GPT_STYLE, [WEATHER])]
)
def test_conversations_of_the_published_examples(
    wire: Wire, messages: list[JsonDict], functions: list[JsonDict] | None
) -> None:
    for length, message in enumerate(messages, start=1):
        if message["role"] == "assistant":
            continue
        choice = wire.choice(messages=messages[:length], functions=functions, max_tokens=3, temperature=0.8, seed=1)
        assert choice["finish_reason"] in ("stop", "length", "function_call")
    reply = ask(wire, *messages, **({"functions": functions} if functions else {}))
    assert isinstance(reply["choices"][0]["message"]["content"], str)
    assert ("function_call" in reply["choices"][0]["message"]) == (functions is not None)
