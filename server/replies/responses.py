"""Responses as OpenAI writes them: numbered events, and the response itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from model.contract.tokenizer import Tokenizer
from prompts.reply_events import CallArguments, CallStart, Content
from server.conversion.generation_request import GenerationRequest
from server.replies.generation import TokenUsage
from server.replies.logprobs import text_logprobs
from server.replies.output_processor import LENGTH, TOOL_CALLS, ChoiceDelta
from server.replies.response_items import CallItem, MessageItem, Status, item_id
from server.replies.server_sent_events import named_event
from server.wire.errors import ApiError, dump_json
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.responses import ResponseObject, ResponsesRequest, ResponseUsage

# Codes of failed responses, which have a list of their own.
_FAILURES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


def new_response(id: str, request: ResponsesRequest, model: str, *, truncation: str) -> ResponseObject:
    """Returns a response before any work for it.

    Args:
        model: the name the request asked for.
        truncation: the default for requests that do not say.
    """
    text = request.text
    reasoning = request.reasoning or {}
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if request.background else "in_progress",
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "conversation": {"id": request.conversation} if isinstance(request.conversation, str) else request.conversation,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": _or_1(request.temperature),
        "text": {
            "format": (None if text is None else text.format) or {"type": "text"},
            "verbosity": (None if text is None else text.verbosity) or "medium",
        },
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": _or_1(request.top_p),
        "truncation": request.truncation or truncation,
        "usage": None,
        "user": request.user,
    }


def _or_1(value: float | None) -> float:
    """Returns what a response shows until its request is understood and the checkpoint's defaults are known."""
    return 1.0 if value is None else value


class ResponsesReply:
    """The reply to one request.

    Args:
        request: None if it was never understood.
        response: made by `new_response`.
        num_items: items of the conversation before the response's output.
        tokenizer: names tokens in log-probabilities.

    Attributes:
        response: the response so far.
    """

    def __init__(
        self, request: GenerationRequest | None, response: ResponseObject, num_items: int, tokenizer: Tokenizer
    ) -> None:
        self.response = response.copy()
        if request is not None:
            sampling = request.prompts[0].sampling
            self.response |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        self._num_top = 0 if request is None else request.num_logprobs or 0
        self._custom_tools = frozenset[str]() if request is None else request.custom_tools
        self._tokenizer = tokenizer
        self._namespaces = {tool["name"] for tool in response["tools"] if tool.get("type") == "namespace"}
        self._hex = response["id"].partition("_")[2]
        self._num_items = num_items
        self._number = 0
        self._item: MessageItem | CallItem | None = None
        self._finish_reason: str | None = None
        self._is_started = False
        self._tail: bytes | None = None

    @property
    def num_events(self) -> int:
        """Events written so far."""
        return self._number

    def beginning(self) -> bytes:
        """Returns the events before the first delta."""
        if self.response["background"]:
            return self._state("response.created") + self._state("response.queued")
        return self._state("response.created") + self._start()

    def _start(self) -> bytes:
        if self._is_started:
            return b""
        self._is_started = True
        self.response["status"] = "in_progress"
        return self._state("response.in_progress")

    def events(self, deltas: Sequence[ChoiceDelta], usage: Callable[[], TokenUsage]) -> bytes:
        """Returns the events of some deltas."""
        return self._start() + self._written(event for delta in deltas for event in self._of_delta(delta))

    def _of_delta(self, delta: ChoiceDelta) -> Iterator[JsonObject]:
        logprobs: list[Any] = text_logprobs(delta.logprobs or (), self._num_top, self._tokenizer)
        for event in delta.as_events():
            match event:
                case Content(text) if text or logprobs:
                    yield from self._open_message()
                    assert isinstance(self._item, MessageItem)
                    yield self._item.push(text, logprobs)
                    logprobs = []
                case CallStart(name):
                    yield from self._open_call(name)
                case CallArguments(text) if isinstance(self._item, CallItem):
                    yield self._item.push(text)
        if logprobs and isinstance(self._item, MessageItem):
            yield self._item.push("", logprobs)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason

    def _open_message(self) -> Iterator[JsonObject]:
        if not isinstance(self._item, MessageItem):
            yield from self._close("completed")
            index = len(self.response["output"])
            yield from self._begin(MessageItem(item_id("message", self._hex, self._num_items + index), index))

    def _open_call(self, name: str) -> Iterator[JsonObject]:
        yield from self._close("completed")
        index = len(self.response["output"])
        is_custom = name in self._custom_tools
        number = self._num_items + index
        id = item_id("custom_tool_call" if is_custom else "function_call", self._hex, number)
        call_id = f"call_{self._hex[:20]}{number:04x}"
        namespace, dot, inner = name.partition(".")
        if not dot or namespace not in self._namespaces:
            namespace, inner = "", name
        yield from self._begin(CallItem(id, call_id, index, inner, namespace=namespace, is_custom=is_custom))

    def _begin(self, item: MessageItem | CallItem) -> Iterator[JsonObject]:
        self._item = item
        return item.begin()

    def _close(self, status: Status) -> Iterator[JsonObject]:
        if self._item is not None:
            item, self._item = self._item, None
            yield from item.end(status)
            self.response["output"] = [*self.response["output"], item.whole(status)]

    def finish(self, usage: TokenUsage) -> bytes:
        """Ends the response; returns the events before its last one."""
        start = self._start()
        is_cut = self._finish_reason == LENGTH
        events: list[JsonObject] = []
        if self._item is None and not self.response["output"]:
            events += self._open_message()  # a reply without a text is an empty one
        # Clients should not make a call that the model broke off by itself.
        is_broken = isinstance(self._item, CallItem) and self._finish_reason != TOOL_CALLS
        events += self._close("incomplete" if is_cut or is_broken else "completed")
        self._end("incomplete" if is_cut else "completed")
        self.response["usage"] = usage_object(usage)
        if is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._tail = start + self._written(events)
        return self._tail

    def fail(self, error: ApiError) -> bytes:
        """Ends a response that failed; returns the events before its last one."""
        written = self._written(self._close("incomplete"))
        self._end("failed")
        self.response["error"] = {"code": _FAILURES.get(error.status_code, "server_error"), "message": error.message}
        return written + self._event(_error_event(error))

    def cancel(self) -> bytes:
        """Ends a response that its client cancelled; returns the events before its last one."""
        written = self._written(self._close("incomplete"))
        self._end("cancelled")
        return written

    def _end(self, status: Literal["completed", "incomplete", "failed", "cancelled"]) -> None:
        self.response["status"] = status
        self.response["completed_at"] = int(time.time()) if status == "completed" else None

    def last(self) -> bytes:
        """Returns the last event, of a response that has ended."""
        return numbered(last_event(self.response), self._number)

    def ending(self, usage: TokenUsage) -> bytes:
        """Returns the events after the last delta."""
        return (self.finish(usage) if self._tail is None else self._tail) + self.last()

    def failure(self, error: ApiError) -> bytes:
        """Returns the events that a broken response ends with."""
        return self.fail(error) + self.last()

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Adds deltas to the response that is not streamed."""
        for delta in deltas:
            for _ in self._of_delta(delta):
                pass

    def whole(self, usage: TokenUsage) -> bytes:
        """Returns the response, a JSON text."""
        if self._tail is None:
            self.finish(usage)
        return dump_json(self.response)

    def _state(self, name: str) -> bytes:
        return self._event({"type": name, "response": self.response})

    def _written(self, events: Iterable[JsonObject]) -> bytes:
        return b"".join(map(self._event, events))

    def _event(self, event: JsonObject) -> bytes:
        number, self._number = self._number, self._number + 1
        return numbered(event, number)


def last_event(response: ResponseObject) -> JsonObject:
    """Returns the event that ends the stream of a response; one that was cancelled has none of its own."""
    status = "incomplete" if response["status"] == "cancelled" else response["status"]
    return {"type": f"response.{status}", "response": response}


def _error_event(error: ApiError) -> JsonObject:
    return {"type": "error", "code": error.code, "message": error.message, "param": error.param}


def follower_failure(error: ApiError, number: int) -> bytes:
    """Returns the last event of a stream that cannot be followed further; the response itself goes on."""
    return numbered(_error_event(error), number)


def numbered(event: JsonObject, number: int) -> bytes:
    """Returns an event as it is sent."""
    return named_event({**event, "sequence_number": number})


def usage_object(usage: TokenUsage) -> ResponseUsage:
    """Returns the wire object."""
    return {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached, "cache_write_tokens": 0},
        "output_tokens": usage.num_completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt + usage.num_completion,
    }
