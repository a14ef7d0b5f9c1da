"""Replies as Anthropic's Messages API has them: blocks of text and calls, as events or whole."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from prompts.reply_events import CallArguments, CallStart, Content
from server.conversion.generation_request import GenerationRequest
from server.replies.generation import TokenUsage
from server.replies.output_processor import LENGTH, TOOL_CALLS, ChoiceDelta
from server.replies.server_sent_events import named_event
from server.wire.anthropic_errors import message_error
from server.wire.errors import ApiError, dump_json
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.messages import MessageReply, MessageUsage, OutputBlock

_STOP_REASONS: dict[str, Literal["max_tokens", "tool_use"]] = {LENGTH: "max_tokens", TOOL_CALLS: "tool_use"}


class MessagesReply:
    """The reply to one request.

    Args:
        model: the name the request asked for.
        stop_sequences: the request's own; whatever else ends a reply is its natural end.
    """

    def __init__(self, request: GenerationRequest, model: str, stop_sequences: Sequence[str]) -> None:
        self._text_tools = request.text_tools
        self._stop_sequences = frozenset(stop_sequences)
        self._message: MessageReply = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": _usage(request.num_prompt_tokens, 0),
        }
        self._blocks = self._message["content"]
        self._parts: list[str] = []  # the text or the input of the last block, while that is open
        self._is_open = False

    def beginning(self) -> bytes:
        """Returns the events before the first delta."""
        start = {**self._message, "stop_reason": None}
        return named_event({"type": "message_start", "message": start}) + named_event({"type": "ping"})

    def events(self, deltas: Sequence[ChoiceDelta], usage: Callable[[], TokenUsage]) -> bytes:
        """Returns the events of some deltas."""
        return b"".join(named_event(event) for delta in deltas for event in self._take(delta))

    def ending(self, usage: TokenUsage) -> bytes:
        """Returns the events after the last delta."""
        delta = {"stop_reason": self._message["stop_reason"], "stop_sequence": self._message["stop_sequence"]}
        counts = _usage(usage.num_prompt, usage.num_completion)
        last = ({"type": "message_delta", "delta": delta, "usage": counts}, {"type": "message_stop"})
        return b"".join(map(named_event, (*self._end_block(), *last)))

    def failure(self, error: ApiError) -> bytes:
        """Returns the event that a broken stream ends with."""
        return named_event(message_error(error.status_code, error.code, error.message)[1])

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Adds deltas to the reply that is not streamed."""
        for delta in deltas:
            for _ in self._take(delta):
                pass

    def whole(self, usage: TokenUsage) -> bytes:
        """Returns the reply that is not streamed."""
        for _ in self._end_block():
            pass
        return dump_json(self._message | {"usage": _usage(usage.num_prompt, usage.num_completion)})

    def _take(self, delta: ChoiceDelta) -> Iterator[JsonObject]:
        for event in delta.as_events():
            match event:
                case Content(text) if text:
                    if not self._is_open or self._blocks[-1]["type"] != "text":
                        yield from self._begin_block({"type": "text", "text": ""})
                    self._parts.append(text)
                    yield self._delta({"type": "text_delta", "text": text})
                case CallStart(name):
                    yield from self._begin_block(
                        {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": {}}
                    )
                case CallArguments(text):
                    self._parts.append(text)
                    if text and not self._takes_text:
                        yield self._delta({"type": "input_json_delta", "partial_json": text})
        if delta.finish_reason is not None:
            self._message["stop_reason"] = _STOP_REASONS.get(delta.finish_reason, "end_turn")
            if isinstance(delta.stop_reason, str) and delta.stop_reason in self._stop_sequences:
                self._message["stop_reason"] = "stop_sequence"
                self._message["stop_sequence"] = delta.stop_reason

    @property
    def _takes_text(self) -> bool:
        """Whether the last block calls a tool whose input is text; here its input is an object with that text."""
        return self._blocks[-1].get("name") in self._text_tools

    def _begin_block(self, block: OutputBlock) -> Iterator[JsonObject]:
        yield from self._end_block()
        self._blocks.append(block)
        self._is_open = True
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: JsonObject) -> JsonObject:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _end_block(self) -> Iterator[JsonObject]:
        if not self._is_open:
            return
        block, text = self._blocks[-1], "".join(self._parts)
        self._is_open = False
        self._parts.clear()
        if block["type"] == "text":
            block["text"] = text
        elif self._takes_text:
            block["input"] = {"input": text}
            yield self._delta({"type": "input_json_delta", "partial_json": json.dumps(block["input"])})
        else:
            block["input"] = _object(text)
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}


def _object(text: str) -> JsonObject:
    """Returns the input of a call; one that max_tokens cut off has none."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {"input": value}


def _usage(num_input: int, num_output: int) -> MessageUsage:
    return {
        "input_tokens": num_input,
        "output_tokens": num_output,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
