"""API client of the chat: lists models and streams replies.

Every failure is raised as a ChatError, a sentence for people. Knows nothing about terminals.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tools.api_address import open_client, parse_address
from tools.chat.errors import ChatError
from tools.event_parser import EventParser

_CONNECT_TIMEOUT_S = 10.0
_LARGEST_REPLY_BYTES = 64 << 20


@dataclass(slots=True)
class Reply:
    """A reply, filled in as it arrives.

    Attributes:
        content: the text so far; before a call, the model's thought.
        calls: the tool calls so far, in the API's form.
        finish_reason: None until the reply ends.
        usage: the server's token counts, or empty.
        started: `time.monotonic()` of the request.
        first: `time.monotonic()` of the first text or call, or None.
        last: `time.monotonic()` of the latest text or call, or None.
    """

    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None

    def take(self, chunk: dict[str, Any]) -> None:
        """Adds the next chunk of the stream."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            content, calls = delta.get("content"), delta.get("tool_calls")
            if content or calls:
                self.last = time.monotonic()
                self.first = self.first or self.last
            self.content += content or ""
            for piece in calls or ():
                self._take_call(piece)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _take_call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index", len(self.calls))
        while len(self.calls) <= min(index, 63):
            self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = self.calls[min(index, 63)], piece.get("function") or {}
        call["id"] = piece.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


class ChatClient:
    """Client of one server.

    Args:
        base_url: /v1 is added if it has no path.
        timeout_s: longest silence of the server.
        why_gone: called when the server cannot be reached; returns why it has ended, or None.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        why_gone: Callable[[], str | None] = lambda: None,
    ) -> None:
        try:
            url = parse_address(base_url)
            self._http = open_client(
                url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
            )
        except ValueError as error:
            raise ChatError(str(error)) from error
        self.url = url._replace(path=url.path.rstrip("/") or "/v1", query="", fragment="").geturl()
        self._timeout_s = timeout_s
        self._why_gone = why_gone

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """Lists the server's models.

        Raises:
            ChatError: the server cannot be reached, or lists none.
        """
        try:
            response = await self._http.get(f"{self.url}/models")
        except httpx.HTTPError as error:
            raise self._as_error(error, during="connect") from error
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.content)
        listed = _json(response.content).get("data")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        if not any(isinstance(entry.get("id"), str) for entry in entries):
            raise ChatError(f"{self.url} lists no models: it is no OpenAI-compatible server.")
        return entries

    async def stream(self, body: dict[str, Any], reply: Reply) -> AsyncIterator[None]:
        """Sends a conversation and fills in the reply; yields whenever more of it has arrived.

        Raises:
            ChatError: the request was refused, or the reply broke off.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        parser = EventParser()
        num_bytes = 0
        try:
            # ASCII-escaped, as a loaded conversation may contain a lone surrogate.
            content = json.dumps(body)
            json_type = {"Content-Type": "application/json"}
            async with self._http.stream(
                "POST", f"{self.url}/chat/completions", content=content, headers=json_type
            ) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                async for data in response.aiter_bytes():
                    num_bytes += len(data)
                    if num_bytes > _LARGEST_REPLY_BYTES:
                        raise ChatError("The reply is too long to be shown; it was cut off.")
                    for event in parser.push(data):
                        if event == b"[DONE]":
                            reply.finish_reason = reply.finish_reason or "stop"
                        else:
                            self._take(reply, event)
                    yield
        except httpx.HTTPError as error:
            raise self._as_error(error, during="reply" if reply.first else "request") from error
        if reply.finish_reason is None:
            raise ChatError("The reply broke off before its end: the server may have stopped.")

    def _take(self, reply: Reply, event: bytes) -> None:
        chunk = _json(event)
        if chunk.get("error"):
            raise self._refusal(500, event)
        try:
            reply.take(chunk)
        except (AttributeError, TypeError) as error:  # JSON of another shape
            raise ChatError(f"That is no OpenAI-compatible server: it sent {event[:60]!r}.") from error

    def _refusal(self, status: int, body: bytes) -> ChatError:
        """Converts an error reply into a sentence for people, mostly its own message."""
        try:
            reply = json.loads(body)
        except ValueError:
            reply = None
        error = reply.get("error", reply) if isinstance(reply, dict) else None
        error = error if isinstance(error, dict) else {"message": error or f"HTTP status {status}"}
        message = " ".join(str(error.get("message") or f"HTTP status {status}").split())[:1000]
        if status in (401, 403):
            return ChatError(f"{message} Give yours with --api-key, or in the variable OPENAI_API_KEY.")
        if error.get("code") == "context_length_exceeded":
            advice = "/clear starts afresh, and /set truncation=auto lets the oldest turns go."
            return ChatError(f"The conversation has become too long. {message} {advice}")
        if status == 404 and error.get("code") != "model_not_found":
            return ChatError(f"There is no chat at {self.url} (404): check --base-url. {message}")
        if status in (429, 503):
            return ChatError(f"{message} /retry asks again.")
        return ChatError(message)

    def _as_error(self, error: httpx.HTTPError, during: str) -> ChatError:
        reason = self._why_gone()
        if reason is not None:
            return ChatError(reason)
        match error:
            case httpx.ConnectTimeout():
                return ChatError(f"{self.url} does not answer.")
            case httpx.ConnectError() if "CERTIFICATE" in str(error):
                return ChatError(f"{self.url}: its certificate is not to be trusted ({error}).")
            case httpx.ConnectError():
                return ChatError(
                    f"Nobody answers at {self.url}. Start a server with `qwen-server serve MODEL`, or have one for this"
                    " chat: `qwen-server chat MODEL`."
                )
            case httpx.TimeoutException():
                return ChatError(f"The server was silent for {self._timeout_s:g} s (--timeout-s).")
        if during == "reply":
            return ChatError("The connection broke in the middle of the reply: the server may have stopped.")
        detail = str(error) or type(error).__name__
        return ChatError(f"The server at {self.url} hung up ({detail}).")


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ChatError(f"That is no OpenAI-compatible server: it sent {data[:60]!r}.") from error
    if not isinstance(value, dict):
        raise ChatError(f"That is no OpenAI-compatible server: it sent {data[:60]!r}.")
    return value
