"""openai 0.28, as the published README uses it: requests and reading of that package, which cannot stand beside 3.x.

`Object`, `parse` and `create` do what its `OpenAIObject`, `parse_stream_helper` and `ChatCompletion.create` do with a
reply; the calls below them are the README's. The same calls were run with the package itself, 0.28.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.server_process import ServerProcess

HEADERS = {
    "Authorization": "Bearer none",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/v1 PythonBindings/0.28.1",
    "X-OpenAI-Client-User-Agent": '{"bindings_version": "0.28.1", "lang": "python"}',
}
ASKED = [{"role": "user", "content": "你好"}]
WEATHER = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given city.",
    "parameters": {
        "type": "object",
        "properties": {"location": {"enum": ["Boston"]}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["location"],
    },
}


class Object(dict[str, Any]):
    """Fields as attributes; one that is not there is no attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class RefusedError(Exception):
    """What the package raises InvalidRequestError with."""


def parse(line: bytes) -> str | None:
    """A line of a stream; None for all that is no data, and for its end."""
    if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
        return None
    return line.removeprefix(b"data: ").decode()


def read(text: str | bytes) -> Any:
    data = json.loads(text, object_pairs_hook=Object)
    if "error" in data:
        error = data["error"]
        raise RefusedError(error["message"], error["param"], error["code"], error["type"])
    return data


def create(server: ServerProcess, path: str = "/chat/completions", **params: Any) -> Any:
    """A reply, or the chunks of a stream."""
    url = f"{server.url}/v1{path}"
    if not params.get("stream"):
        return read(httpx.post(url, headers=HEADERS, content=json.dumps(params), timeout=60).content)
    return stream(url, params)


def stream(url: str, params: dict[str, Any]) -> Iterator[Any]:
    with httpx.stream("POST", url, headers=HEADERS, content=json.dumps(params), timeout=60) as response:
        assert "text/event-stream" in response.headers["Content-Type"]
        rest = b""
        for piece in response.iter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            for data in filter(None, map(parse, lines)):
                yield read(data)


def test_the_streaming_example(server: ServerProcess) -> None:
    said = ""
    for chunk in create(server, model="Qwen", messages=ASKED, stream=True, max_tokens=12, ignore_eos=True):
        if hasattr(chunk.choices[0].delta, "content"):  # of every chunk: none may come without choices
            said += chunk.choices[0].delta.content  # and none with a null
    assert said


def test_the_example_without_streaming(server: ServerProcess) -> None:
    response = create(server, model="Qwen", messages=ASKED, stream=False, stop=[], max_tokens=4)
    assert isinstance(response.choices[0].message.content, str)
    assert response.usage.total_tokens > 0


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_function_calling_example(is_streamed: bool, server: ServerProcess) -> None:
    """What the README appends to its messages: the message as it came, and then the function's result."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather like in Boston?"}]
    wish = {"functions": [WEATHER], "function_call": {"name": "get_current_weather"}, "max_tokens": 200}
    if is_streamed:
        call = Object(name="", arguments="")
        for chunk in create(server, model="Qwen", messages=messages, stream=True, **wish):
            for name, text in chunk.choices[0].delta.get("function_call", {}).items():
                call[name] += text
        message = Object(role="assistant", content=None, function_call=call)
    else:
        message = create(server, model="Qwen", messages=messages, **wish).choices[0].message
    assert message.function_call.name == "get_current_weather"
    assert "location" in json.loads(message.function_call.arguments)
    messages += [message, {"role": "function", "name": "get_current_weather", "content": '{"temperature": "22"}'}]
    answer = create(server, model="Qwen", messages=messages, functions=[WEATHER], max_tokens=8)
    assert answer.choices[0].message.role == "assistant"


def test_the_react_example(server: ServerProcess) -> None:
    """A prompt in ReAct format, written by the client, ends where its stop word would be."""
    body = {"structured_outputs": {"choice": ["Thought: x\nObservation: y"]}}
    response = create(server, model="Qwen", messages=ASKED, stop=["Observation:"], max_tokens=60, **body)
    assert response.choices[0].message.content == "Thought: x\n"


def test_refusals_are_its_errors(server: ServerProcess) -> None:
    with pytest.raises(RefusedError, match="does not exist") as caught:
        create(server, model="gpt-3.5-turbo", messages=ASKED)
    assert caught.value.args[1:] == ("model", "model_not_found", "invalid_request_error")
    with pytest.raises(RefusedError, match="temperature"):
        create(server, model="Qwen", messages=ASKED, temperature=-1)


def test_the_other_resources(server: ServerProcess) -> None:
    completion = create(server, "/completions", model="Qwen", prompt="1, 2,", max_tokens=3, ignore_eos=True)
    assert completion.usage.completion_tokens == 3
    models = read(httpx.get(f"{server.url}/v1/models", headers=HEADERS).content)
    assert "Qwen" in [model.id for model in models.data]
    assert read(httpx.get(f"{server.url}/v1/models/Qwen", headers=HEADERS).content).object == "model"
