"""Parses a reply of an OpenAI-compatible server: when its tokens came, how many there were, and what went wrong.

load.py sends the requests, report.py computes statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from tools.bench.http import ResponseParser
from tools.event_parser import EventParser

_MAX_DETAIL_CHARS = 200
_MAX_BODY_BYTES = 64 << 20
# Fields of a chat delta that carry generated text. (Completions have `text`; `token_ids`, if requested, also tell of
# tokens without text, which do not complete a character.)
_DELTA_FIELDS = ("content", "tool_calls", "function_call", "reasoning_content", "reasoning")


@dataclass(slots=True)
class Record:
    """The outcome of one request. Times are in seconds.

    Attributes:
        started: when it was sent, or was due, since the level began.
        duration: until it ended or failed.
        ttft: time to the first event that carries tokens; None without such an event.
        gaps: times between events that carry tokens, within a choice.
        generation: time from the first such event to the last.
        prompt_tokens: the server's count.
        cached_tokens: prompt tokens from the server's prefix cache.
        output_tokens: the server's count, or the number of events if it reports none.
        num_choices: number of choices that had events with tokens.
        is_counted: the server reported usage.
        error: kind of failure, or None.
        detail: message of the failure.
    """

    started: float
    duration: float = 0.0
    ttft: float | None = None
    gaps: list[float] = field(default_factory=list)
    generation: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    num_choices: int = 0
    is_counted: bool = False
    error: str | None = None
    detail: str = ""

    @property
    def per_output_token(self) -> float | None:
        """Seconds per token after the first; None for a single token or several choices."""
        if self.num_choices != 1 or self.output_tokens < 2:
            return None
        return self.generation / (self.output_tokens - 1)


class RequestError(Exception):
    """A request failed.

    Attributes:
        kind: the category of the failure, in a few words.
        detail: the message of the server or the system.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


class ReplyTimer:
    """Reads the body of one reply and writes times and counts into its record."""

    def __init__(self, record: Record, origin: float, *, stream: bool) -> None:
        self._record = record
        self._origin = origin
        self._events = EventParser() if stream else None
        self._body = bytearray()
        self._last: dict[int, float] = {}
        self._first: float | None = None
        self._num_events = 0
        self._finished = False

    def take(self, status: int, data: bytes, now: float) -> None:
        """Reads a piece of the body, which arrived at `now`.

        Raises:
            RequestError: the stream reports an error.
        """
        if self._events is None or status != 200:
            if len(self._body) + len(data) > _MAX_BODY_BYTES:
                raise RequestError("bad reply", "the body is too large")
            self._body += data
            return
        for event in self._events.push(data):
            if event == b"[DONE]":
                self._finished = True
            else:
                self._chunk(event, now)

    def _chunk(self, event: bytes, now: float) -> None:
        chunk = load_object(event)
        if chunk.get("error"):
            raise RequestError("error in stream", error_message(event))
        self._usage(chunk)
        for choice in chunk.get("choices") or ():
            if _carries_tokens(choice):
                self._tokens(choice.get("index", 0), now)
            if choice.get("finish_reason") is not None:
                self._finished = True

    def _tokens(self, index: int, now: float) -> None:
        self._num_events += 1
        if self._first is None:
            self._first = now
            self._record.ttft = now - self._origin
        last = self._last.get(index)
        if last is not None:
            self._record.gaps.append(now - last)
        self._last[index] = now
        self._record.num_choices = len(self._last)
        self._record.generation = now - self._first

    def _usage(self, reply: dict[str, Any]) -> None:
        usage = reply.get("usage")
        if usage:
            record = self._record
            record.prompt_tokens = usage.get("prompt_tokens", 0)
            record.output_tokens = usage.get("completion_tokens", 0)
            record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            record.is_counted = True

    def finish(self, response: ResponseParser) -> None:
        """Handles the end of the response.

        Raises:
            RequestError: the response is not a complete, successful reply.
        """
        if response.status != 200:
            raise RequestError(f"http {response.status}", error_message(bytes(self._body)))
        if self._events is None:
            reply = load_object(bytes(self._body))
            if not isinstance(reply.get("choices"), list):
                raise RequestError("bad reply", "no choices")
            self._usage(reply)
            return
        if not self._finished:
            raise RequestError("cut short", "the stream ended without a finish reason")
        if not self._record.is_counted:
            self._record.output_tokens = self._num_events


def _carries_tokens(choice: dict[str, Any]) -> bool:
    if choice.get("text") or choice.get("token_ids"):
        return True
    delta = choice.get("delta") or {}
    return any(delta.get(name) for name in _DELTA_FIELDS)


def load_object(data: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        RequestError: it is something else.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise RequestError("bad reply", f"not JSON: {data[:80]!r}") from None
    if not isinstance(value, dict):
        raise RequestError("bad reply", f"not an object: {data[:80]!r}")
    return value


def error_message(body: bytes) -> str:
    """Extracts the message of an error reply of any shape, on one line."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        reply = body.decode(errors="replace")
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    text = error.get("message") if isinstance(error, dict) else None
    return " ".join(str(text or error).split())[:_MAX_DETAIL_CHARS]
