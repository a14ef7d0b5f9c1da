"""The openai package, synchronous and asynchronous, against the real server, as its documentation uses it.

Where the random checkpoint has to say something in particular, the request forces it: a tool, a schema, a choice.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.conftest import SMALL
from tests.support.in_process_server import in_process_server
from tests.support.server_process import Server
from tests.support.wire import TOOLS, WEATHER, named

# The SDK's types want literals everywhere; these tests send plain dicts on purpose.
# mypy: disable-error-code="call-overload,arg-type"

HI: list[Any] = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    name: Literal["Ann", "Bob"]
    ages: list[Literal[1, 2]]
    friend: Literal["Cid"] | None


class GetWeather(BaseModel):
    """Weather of a city."""

    city: Literal["Paris", "Rome"]


PERSON_BIAS = {str(ord("]")): 20}  # lists end


def said(text: str) -> dict[str, Any]:
    return {"extra_body": {"structured_outputs": {"choice": [text]}}}


def run_tool(call: Any) -> str:
    """A tool of the client's."""
    arguments = json.loads(call.function.arguments)
    return "noon" if call.function.name == "clock" else f"{arguments['city']}: 20 {arguments['unit']}"


def test_a_loop_of_tools(client: openai.OpenAI) -> None:
    messages = [*HI]
    for choice in (named("get_weather"), named("clock")):
        reply = client.chat.completions.create(model="Qwen", messages=messages, tools=TOOLS, tool_choice=choice)
        assert reply.choices[0].finish_reason == "tool_calls"
        message = reply.choices[0].message
        assert message.tool_calls
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": c.id, "content": run_tool(c)} for c in message.tool_calls]
    last = client.chat.completions.create(
        model="Qwen", messages=messages, tools=TOOLS, tool_choice="none", **said("It is noon.")
    )
    assert last.choices[0].message.content == "It is noon."
    assert last.choices[0].finish_reason == "stop"


def test_calls_in_a_stream(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "tools": TOOLS, "tool_choice": named("get_weather")}
    with client.chat.completions.create(**wishes, stream=True, seed=1) as stream:
        calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.id for call in calls if call.id] == [calls[0].id]
    assert calls[0].function is not None and calls[0].function.name == "get_weather"
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert len(calls) > 3, "arguments come in pieces"
    whole = client.chat.completions.create(**wishes, seed=1).choices[0].message.tool_calls
    assert whole and json.loads(whole[0].function.arguments) == json.loads(arguments)


def test_the_stream_helper(client: openai.OpenAI) -> None:
    kinds = set()
    with client.chat.completions.stream(
        model="Qwen",
        messages=HI,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        temperature=0,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)
    with client.chat.completions.stream(
        model="Qwen", messages=HI, response_format=Person, temperature=0, logit_bias=PERSON_BIAS
    ) as stream:
        assert "content.delta" in {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_parse(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="Qwen", messages=HI, response_format=Person, temperature=1, seed=3, logit_bias=PERSON_BIAS
    )
    assert isinstance(reply.choices[0].message.parsed, Person)
    called = client.chat.completions.parse(
        model="Qwen", messages=HI, tools=[openai.pydantic_function_tool(GetWeather)], tool_choice="required"
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="Qwen", messages=HI, response_format=Person, max_tokens=3)


def test_legacy_functions(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "Qwen", "functions": [WEATHER], "temperature": 0}
    reply = client.chat.completions.create(messages=HI, function_call={"name": "get_weather"}, **wishes)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "function_call"
    assert message.function_call is not None and message.tool_calls is None
    assert json.loads(message.function_call.arguments)["unit"] in ("c", "f")
    chunks = list(
        client.chat.completions.create(messages=HI, function_call={"name": "get_weather"}, stream=True, **wishes)
    )
    deltas = [chunk.choices[0].delta.function_call for chunk in chunks]
    assert "".join(d.arguments or "" for d in deltas if d) == message.function_call.arguments
    assert [d.name for d in deltas if d and d.name] == ["get_weather"]
    history = [*HI, message, {"role": "function", "name": "get_weather", "content": "20"}]
    last = client.chat.completions.create(messages=history, function_call="none", **wishes, **said("mild"))
    assert last.choices[0].message.content == "mild"


def test_completions(client: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "Qwen", "prompt": ["a", "b"], "max_tokens": 9, **said("word")}
    reply = client.completions.create(**wishes)
    assert [choice.text for choice in reply.choices] == ["word", "word"]
    texts = ["", ""]
    for chunk in client.completions.create(**wishes, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["word", "word"]
    assert chunk.usage == reply.usage


def test_raw_responses_carry_the_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="Qwen", messages=HI, max_tokens=1, extra_headers={"x-request-id": "mine-7"}
    )
    assert raw.headers["x-request-id"] == "mine-7"
    assert raw.parse()._request_id == "mine-7"
    assert {model.id for model in client.models.list()} >= {"Qwen"}


async def test_the_asynchronous_client(async_client: openai.AsyncOpenAI) -> None:
    create = async_client.chat.completions.create
    stream = await create(model="Qwen", messages=HI, stream=True, **said("hello there"))
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello there"
    replies = await asyncio.gather(*(create(model="Qwen", messages=HI, **said(f"reply {i}")) for i in range(8)))
    assert [reply.choices[0].message.content for reply in replies] == [f"reply {i}" for i in range(8)]
    called = await create(model="Qwen", messages=HI, tools=TOOLS, tool_choice="required")
    assert called.choices[0].finish_reason == "tool_calls"
    parsed = await async_client.chat.completions.parse(
        model="Qwen", messages=HI, response_format=Person, temperature=0, logit_bias=PERSON_BIAS
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)
    async with async_client.chat.completions.stream(model="Qwen", messages=HI, **said("again")) as helper:
        assert [event async for event in helper]
        assert (await helper.get_final_completion()).choices[0].message.content == "again"


# -- errors, retries, timeouts


def test_errors_are_of_their_classes(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    bad: list[dict[str, Any]] = [
        {"temperature": -1},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [*HI, {"role": "tool", "tool_call_id": "none", "content": "x"}]},
        {"stream": True, "max_tokens": 10**9},
    ]
    for wishes in bad:
        with pytest.raises(openai.BadRequestError) as caught:
            create(**{"model": "Qwen", "messages": HI, **wishes})
        assert caught.value.type == "invalid_request_error"
        assert caught.value.param
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="Qwen", messages=HI, max_tokens=1500, extra_body={"ignore_eos": True}
        )
    with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0) as nobody:
        with pytest.raises(openai.APIConnectionError):
            nobody.models.list()


@pytest.fixture(scope="module")
def small_server(demo_checkpoint: Path) -> Iterator[Server]:
    """A server with a key, that takes one request at a time and lets none wait."""
    flags = (*SMALL, "--api-key", "secret", "--max-queue-requests", "1", "--max-num-seqs", "1")
    with in_process_server(demo_checkpoint, *flags) as server:
        yield server


@contextmanager
def full(server: Server) -> Iterator[Callable[[], None]]:
    """Keeps a server busy and its queue full; the function it yields ends that."""
    wishes: dict[str, Any] = {"model": "Qwen", "messages": HI, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    with ExitStack() as stack:
        sdk = stack.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0))
        running = stack.enter_context(sdk.chat.completions.create(**wishes, stream=True))
        next(iter(running))
        # Has its headers, but waits for its first token.
        stack.enter_context(sdk.chat.completions.with_streaming_response.create(**wishes, stream=True))
        yield stack.close


def test_keys_and_full_queues(small_server: Server) -> None:
    url = f"{small_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as denied:
            stranger.chat.completions.create(model="Qwen", messages=HI)
        assert denied.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as sdk, full(small_server):
        with pytest.raises(openai.RateLimitError) as limited:
            sdk.chat.completions.create(model="Qwen", messages=HI, max_tokens=1)
        assert limited.value.code == "server_overloaded"
        assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60


def test_the_sdk_comes_back_after_the_time_it_is_told(small_server: Server) -> None:
    with openai.OpenAI(base_url=f"{small_server.url}/v1", api_key="secret", max_retries=4) as sdk:
        with full(small_server) as end:
            timer = threading.Timer(0.2, end)
            timer.start()
            raw = sdk.chat.completions.with_raw_response.create(model="Qwen", messages=HI, max_tokens=1)
            timer.join()
        assert raw.parse().choices
        assert raw.retries_taken >= 1


def test_a_server_that_drains_is_told_apart(demo_checkpoint: Path) -> None:
    """A 503 with Retry-After is tried again by the SDK, and is an InternalServerError when it stays."""
    with in_process_server(demo_checkpoint, *SMALL) as process:
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0, timeout=30) as sdk:
            endless = sdk.chat.completions.create(
                model="Qwen", messages=HI, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(endless))
            process.signal()
            while process.status("/ready") == 200:
                time.sleep(0.01)
            with pytest.raises(openai.InternalServerError) as gone:
                sdk.chat.completions.create(model="Qwen", messages=HI, max_tokens=1)
            assert gone.value.status_code == 503
            assert gone.value.code == "engine_unavailable"
            assert 1 <= int(gone.value.response.headers["retry-after"]) <= 60
            endless.close()


async def test_a_stream_that_breaks_raises(demo_checkpoint: Path) -> None:
    async def read(stream: AsyncIterator[Any]) -> None:
        async for _ in stream:
            pass

    with in_process_server(demo_checkpoint, *SMALL, "--request-timeout-s", "0.5") as process:
        async with openai.AsyncOpenAI(base_url=f"{process.url}/v1", api_key="x", max_retries=0) as sdk:
            wishes: dict[str, Any] = {
                "model": "Qwen", "messages": HI, "max_tokens": 1900, "extra_body": {"ignore_eos": True}
            }  # fmt: skip
            stream = await sdk.chat.completions.create(**wishes, stream=True)
            with pytest.raises(openai.APIError, match="Not finished within"):
                await read(stream)
            with pytest.raises(openai.InternalServerError) as late:
                await sdk.chat.completions.create(**wishes)
            assert late.value.status_code == 504
