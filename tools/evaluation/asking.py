"""Sends the cases of a suite to a server: greedy, with bounded concurrency, and with retries while it is busy.

It uses the plain OpenAI API, so it can measure any such server. It knows nothing about expected answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from model.contract.errors import StartupError

Mode = Literal["tools", "functions"]

_MAX_TRIES = 6
_MAX_WAIT_S = 60.0
_BUSY = frozenset({429, 502, 503})


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to one case.

    Attributes:
        tool: the name of the first called tool, or None.
        arguments: the arguments of that call, as text.
        num_calls: how many calls the message contains.
        error: why there is no reply, or None.
    """

    text: str = ""
    tool: str | None = None
    arguments: str = ""
    num_calls: int = 0
    error: str | None = None


class Asker:
    """Sends cases to one server; the client has its base URL and key."""

    def __init__(self, client: httpx.AsyncClient, model: str, mode: Mode = "tools", max_tokens: int = 512) -> None:
        self._client = client
        self._model = model
        self._mode = mode
        self._max_tokens = max_tokens

    async def ask(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, stop: str | None = None
    ) -> Answer:
        """Sends one conversation. A failure is returned as an answer with an error."""
        body: dict[str, Any] = {"model": self._model, "temperature": 0, "max_tokens": self._max_tokens}
        if stop is not None:
            body["stop"] = [stop]
        if tools is None:
            body["messages"] = messages
        elif self._mode == "tools":
            body |= {"messages": messages, "tools": tools}
        else:
            body |= {"messages": to_functions(messages), "functions": [tool["function"] for tool in tools]}
        try:
            response = await self._post(body)
        except httpx.HTTPError as error:
            return Answer(error=f"{type(error).__name__}: {error}".rstrip(": "))
        if response.status_code != 200:
            return Answer(error=f"HTTP {response.status_code}: {' '.join(response.text.split())[:300]}")
        try:
            return _read(response.json())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return Answer(error=f"not a chat completion ({error!r})")

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        for number in range(1, _MAX_TRIES + 1):
            response = await self._client.post("chat/completions", json=body)
            if response.status_code not in _BUSY or number == _MAX_TRIES:
                break
            await asyncio.sleep(_wait_s(response, number))
        return response


async def choose_model(client: httpx.AsyncClient) -> str:
    """Returns the first model that a server lists.

    Raises:
        StartupError: the server cannot be reached, or lists none.
    """
    try:
        response = await client.get("models")
    except httpx.HTTPError as error:
        raise StartupError(f"cannot reach {client.base_url}: {error or type(error).__name__}") from error
    if response.status_code == 401:
        raise StartupError(f"{client.base_url} wants a key: give one with --api-key or OPENAI_API_KEY")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise StartupError(
            f"{client.base_url}models answered HTTP {response.status_code} without a list of models; "
            "does the URL end in /v1? A server without that list needs --model"
        ) from error


async def ask_all(ask: Sequence[Callable[[], Any]], concurrency: int, on_answer: Callable[[], object]) -> list[Answer]:
    """Awaits all of `ask`, at most `concurrency` at a time, and returns the answers in the same order."""
    gate = asyncio.Semaphore(concurrency)

    async def one(make: Callable[[], Any]) -> Answer:
        async with gate:
            answer: Answer = await make()
        on_answer()
        return answer

    return list(await asyncio.gather(*(one(make) for make in ask)))


def to_functions(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Converts a conversation to the older API: `function_call`, and results with role `function`."""
    names: dict[str, str] = {}
    converted = []
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            names |= {call["id"]: call["function"]["name"] for call in calls}
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            converted.append({**rest, "function_call": calls[0]["function"]})
        elif message.get("role") == "tool":
            name = names[message["tool_call_id"]]
            converted.append({"role": "function", "name": name, "content": message.get("content")})
        else:
            converted.append(message)
    return converted


def _read(reply: dict[str, Any]) -> Answer:
    message = reply["choices"][0]["message"]
    text = message.get("content") or ""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if message.get("function_call"):
        calls.append(message["function_call"])
    if not calls:
        return Answer(text=text)
    arguments = calls[0].get("arguments") or ""
    if not isinstance(arguments, str):  # some servers send the object itself
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Answer(text=text, tool=str(calls[0]["name"]), arguments=arguments, num_calls=len(calls))


def _wait_s(response: httpx.Response, number: int) -> float:
    asked = response.headers.get("retry-after", "")
    return min(_MAX_WAIT_S, float(asked) if asked.isdecimal() else 2.0 ** (number - 1))
