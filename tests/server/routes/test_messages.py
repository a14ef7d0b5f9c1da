"""Anthropic's Messages API, as its SDK speaks it; replies are those of chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from server.conversion.readers.messages import read_count, read_messages
from server.wire.anthropic_errors import message_error
from server.wire.shapes.messages import CountTokensRequest, MessagesRequest
from tests.support.light_server import light_server
from tests.support.server_process import ServerProcess
from tests.support.wire import Wire

Json = dict[str, Any]
HELLO: Any = [{"role": "user", "content": "Hello!"}]
WEATHER: Json = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL: Any = {"name": "get_weather", "description": "Weather of a city", "input_schema": WEATHER}
CALL: Json = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}


@pytest.fixture(scope="module")
def sdk(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_message(sdk: anthropic.Anthropic) -> None:
    message = sdk.messages.create(
        model="Qwen-Demo", max_tokens=12, messages=HELLO, system="Be brief.", metadata={"user_id": "u"},
        extra_body={"seed": 5, "temperature": 0.5, "top_k": 20}, extra_headers={"anthropic-beta": "x-2026-01-01"},
    )  # fmt: skip
    assert (message.type, message.role, message.model) == ("message", "assistant", "Qwen-Demo")
    assert message.id.startswith("msg_") and message.stop_reason in ("max_tokens", "end_turn")
    assert [block.type for block in message.content] == ["text"] and message.usage.output_tokens <= 12
    count = sdk.messages.count_tokens(model="Qwen-Demo", messages=HELLO, system="Be brief.")
    assert count.input_tokens == message.usage.input_tokens
    assert message._request_id


def test_a_stream_is_the_message(sdk: anthropic.Anthropic) -> None:
    wishes: Any = {"model": "Qwen-Demo", "max_tokens": 12, "messages": HELLO, "extra_body": {"seed": 3}}
    whole = sdk.messages.create(**wishes)
    with sdk.messages.stream(**wishes) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert [b.text for b in streamed.content] == [b.text for b in whole.content]  # type: ignore[union-attr]
    assert streamed.usage == whole.usage
    assert streamed.stop_reason == whole.stop_reason
    raw = [event.type for event in sdk.messages.create(**wishes, stream=True)]
    deltas = raw.count("content_block_delta")
    assert raw == [
        "message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert deltas and "text" in kinds


def test_the_events_of_a_stream(wire: Wire) -> None:
    body = {"max_tokens": 4, "messages": HELLO, "stream": True}
    response = wire.http.post("/v1/messages", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [part.split("\n") for part in response.text.split("\n\n") if part and not part.startswith(":")]
    assert all(head == f"event: {json.loads(data.removeprefix('data: '))['type']}" for head, data in events)
    assert [head for head, _ in events[:2]] == ["event: message_start", "event: ping"]


def test_a_forced_tool_is_called(sdk: anthropic.Anthropic) -> None:
    wishes: Any = {"model": "Qwen-Demo", "max_tokens": 400, "messages": HELLO, "tools": [TOOL]}
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "get_weather"}):
        message = sdk.messages.create(**wishes, tool_choice=choice, extra_body={"seed": 1})
        call = message.content[-1]
        assert message.stop_reason == "tool_use" and call.type == "tool_use" and call.id.startswith("toolu_")
        assert call.name == "get_weather" and call.input in ({"city": "Paris"}, {"city": "Rome"})
    with sdk.messages.stream(**wishes, tool_choice=choice, extra_body={"seed": 1}) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[-1].input == call.input and streamed.stop_reason == "tool_use"  # type: ignore[union-attr]


def openai_form(tool: Json) -> Json:
    function = {"name": tool["name"], "description": tool["description"], "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


CALLED = {"id": "toolu_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
CONVERSATIONS: list[tuple[Json, list[Json]]] = [
    ({"messages": HELLO}, HELLO),
    (
        {"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "One", "cache_control": {"type": "ephemeral"}},
                                         {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "?", "signature": ""},
                                              {"type": "text", "text": "three"}]},
            {"role": "user", "content": "four"}]},
        [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": "One\ntwo"},
         {"role": "assistant", "content": "three"}, {"role": "user", "content": "four"}],
    ),
    (
        {"tools": [TOOL], "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, CALL]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "18"}]},
                {"type": "text", "text": "Well?"}]}]},
        [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "I look.", "tool_calls": [CALLED]},
         {"role": "tool", "tool_call_id": "toolu_1", "content": "18"}, {"role": "user", "content": "Well?"}],
    ),
    (
        {"messages": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]},
        [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "messages"), CONVERSATIONS, ids=["question", "blocks", "result", "prefill"])
def test_replies_are_those_of_chat_completions(
    sdk: anthropic.Anthropic, client: openai.OpenAI, body: Any, messages: Any
) -> None:
    tools: Any = {"tools": [openai_form(tool) for tool in body["tools"]]} if "tools" in body else {}
    chat = client.chat.completions.create(model="Qwen-Demo", messages=messages, max_tokens=16, seed=7, **tools)
    message = sdk.messages.create(model="Qwen-Demo", max_tokens=16, extra_body={"seed": 7}, **body)
    text = "".join(block.text for block in message.content if block.type == "text")
    assert text == (chat.choices[0].message.content or "")
    assert chat.usage is not None and message.usage.input_tokens == chat.usage.prompt_tokens
    assert message.usage.output_tokens == chat.usage.completion_tokens


def test_a_reply_fits_a_schema(sdk: anthropic.Anthropic) -> None:
    form = {"type": "json_schema", "schema": WEATHER}
    for body in ({"output_config": {"effort": "low", "format": form}}, {"output_format": form}):
        message = sdk.messages.create(model="Qwen-Demo", max_tokens=400, messages=HELLO, extra_body={"seed": 1, **body})
        assert json.loads(message.content[0].text)["city"] in ("Paris", "Rome")  # type: ignore[union-attr]


async def test_a_stop_sequence_is_told(demo_checkpoint: Path, tmp_path: Path) -> None:
    script = ["one two three", "one two three", 'Thought: I look.\nAction: get_weather\nAction Input: {"city": "Rome"}']
    async with (
        light_server(demo_checkpoint, tmp_path, script=script) as server,
        anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as sdk,
    ):
        message = await sdk.messages.create(model="Qwen", max_tokens=99, messages=HELLO, stop_sequences=["tw", "th"])
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "tw")
        assert message.content[0].text == "one "  # type: ignore[union-attr]
        message = await sdk.messages.create(model="Qwen", max_tokens=99, messages=HELLO, stop_sequences=["x"])
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Final Answer: no", "is_error": True}
        messages: Any = [*HELLO, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]}]
        message = await sdk.messages.create(model="Qwen", max_tokens=99, messages=messages, tools=[TOOL])
        assert [block.type for block in message.content] == ["text", "tool_use"]
        assert message.content[1].input == {"city": "Rome"}  # type: ignore[union-attr]
        assert "Error: Final Answer: no" in server.prompts()[-1]


def read(**body: Any) -> None:
    read_messages(MessagesRequest.model_validate({"max_tokens": 5, "messages": HELLO, **body}))


def user(*blocks: Json) -> list[Json]:
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": user({"type": "image", "source": {}})}, r"content\[0\]' of type 'image' cannot be read"),
        ({"messages": user({"type": "document"})}, "'document' cannot be read"),
        ({"messages": user(CALL)}, "'tool_use' cannot be read"),
        ({"messages": user({"type": "text"})}, r"messages\[0\].content\[0\].text' is missing"),
        ({"messages": user({"type": "tool_result", "tool_use_id": "x"})}, "'x' is of no earlier tool_use"),
        ({"messages": [*HELLO, {"role": "assistant", "content": [CALL]}]}, "append a user message"),
        ({"messages": [*HELLO, {"role": "assistant", "content": [{**CALL, "id": None}]}]}, "id' is missing"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": [CALL]},
                          *user({"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image"}]})]},
            r"messages\[2\].content\[0\].content\[0\]' of type 'image'",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305' is not served"),
        ({"tools": [{"name": "f"}]}, r"tools\[0\].input_schema' should be"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tools": [TOOL], "tool_choice": {"type": "all"}}, "'tool_choice.type' is"),
        ({"tool_choice": {"type": "any"}}, "needs 'tools'"),
        ({"mcp_servers": [{"url": "u"}]}, "'mcp_servers' is not served"),
        ({"logit_bias": {"5": 1}}, "'logit_bias' is not served"),
        ({"guided_regex": "a+"}, "'guided_regex' is not served"),
        ({"ignore_eos": True}, "'ignore_eos' is not served"),
        ({"repetition_penalty": "x"}, "'repetition_penalty' is not served"),
        ({"messages": user({"type": "tool_result", "content": [1] * 2000})}, "at most 1024 items"),
        ({"output_config": {"format": {"type": "xml"}}}, "'output_config.format' should be"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(body: Json, says: str) -> None:
    with pytest.raises(Exception, match=says):
        read(**body)


def test_what_asks_for_nothing_is_let_through() -> None:
    read(
        tool_choice={"type": "auto"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        mcp_servers=[],
        container=None,
        repetition_penalty=1.0,
        logit_bias={},
    )
    read_count(CountTokensRequest.model_validate({"messages": HELLO, "tools": [TOOL], "tool_choice": {"type": "none"}}))


def test_errors_have_their_shape(sdk: anthropic.Anthropic, wire: Wire) -> None:
    for change, status, kind in (
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"stop_sequences": "x"}, 400, "invalid_request_error"),
        ({"model": "claude"}, 404, "not_found_error"),
        ({"metadata": {"x": "y" * (5 << 20)}}, 413, "request_too_large"),
    ):
        body = {"max_tokens": 5, "messages": HELLO, **change}
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            if change.keys() & {"max_tokens", "stop_sequences"} and path != "/v1/messages":
                continue
            response = wire.http.post(path, json=body)
            error = response.json()
            assert response.status_code == status and error["type"] == "error", error
            assert set(error["error"]) == {"type", "message"} and error["error"]["type"] == kind
            assert error["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
            assert int(response.headers["content-length"]) == len(response.content)
    for response, status in (
        (wire.http.post("/v1/messages", content=b"{"), 400),
        (wire.http.get("/v1/messages"), 405),
        (wire.http.post("/v1/messages/batches", json={}), 404),
    ):
        assert response.status_code == status and response.json()["type"] == "error"
    assert set(wire.http.post("/v1/chat/completions", json={}).json()) == {"error"}
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        sdk.messages.create(model="claude", max_tokens=5, messages=HELLO)


def test_a_full_server_is_overloaded_and_a_limit_is_the_clients_own() -> None:
    assert message_error(429, "server_overloaded", "m")[0] == 529
    assert message_error(429, "server_overloaded", "m")[1]["error"]["type"] == "overloaded_error"
    assert message_error(429, "rate_limit_exceeded", "m", "id") == (
        429, {"type": "error", "error": {"type": "rate_limit_error", "message": "m"}, "request_id": "id"},
    )  # fmt: skip
    assert message_error(503, None, "m")[1]["error"]["type"] == "overloaded_error"
    assert message_error(500, None, "m")[1]["error"]["type"] == "api_error"


async def test_keys_are_taken_as_the_sdk_sends_them(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with light_server(demo_checkpoint, tmp_path, api_key=("ann",), max_queue_requests=1) as server:
        for who in ({"api_key": "ann"}, {"auth_token": "ann"}):
            async with anthropic.AsyncAnthropic(base_url=server.url, max_retries=0, **who) as sdk:
                assert (await sdk.messages.create(model="Qwen", max_tokens=9, messages=HELLO)).content
        async with anthropic.AsyncAnthropic(base_url=server.url, max_retries=0, api_key="bob") as sdk:
            with pytest.raises(anthropic.AuthenticationError, match="x-api-key"):
                await sdk.messages.create(model="Qwen", max_tokens=9, messages=HELLO)
        async with httpx.AsyncClient(base_url=server.url) as http:
            both = {"authorization": "Bearer bob", "x-api-key": "ann"}
            assert (await http.get("/v1/models", headers=both)).status_code == 401
