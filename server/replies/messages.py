"""Replies as Anthropic's Messages API has them: blocks of text and calls, as events or whole."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prompts.reply_events import CallArguments, CallStart, Content, Event
from server.conversion.generation_request import GenerationRequest
from server.replies.generation import TokenUsage
from server.replies.output_processor import LENGTH, TOOL_CALLS, ChoiceDelta
from server.wire.anthropic_errors import message_error
from server.wire.errors import ApiError, dump_json

JsonDict = dict[str, Any]

_STOP_REASONS = {LENGTH: "max_tokens", TOOL_CALLS: "tool_use"}


class MessageWriter:
    """The reply to one request.

    Args:
        request: it answers.
        model: the name the request asked for.
        stop_sequences: of the request; what else ends a reply is its natural end.
        text_tools: names of tools whose input is text; here it is an object with that text.
    """

    def __init__(
        self, request: GenerationRequest, model: str, stop_sequences: Sequence[str], text_tools: frozenset[str]
    ) -> None:
        self._num_prompt_tokens = request.num_prompt_tokens
        self._stop_sequences = frozenset(stop_sequences)
        self._text_tools = text_tools
        self._head: JsonDict = {
            "id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model,
        }  # fmt: skip
        self._blocks: list[JsonDict] = []
        self._parts: list[str] = []  # of the text or the input of the last block
        self._is_open = False
        self._stop_reason = "end_turn"
        self._stop_sequence: str | int | None = None

    def beginning(self) -> bytes:
        """Returns the events before the first delta."""
        usage = _usage(self._num_prompt_tokens, 0)
        start = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event({"type": "message_start", "message": start}) + _event({"type": "ping"})

    def events(self, deltas: Sequence[ChoiceDelta], usage: Callable[[], TokenUsage]) -> bytes:
        """Returns the events of some deltas."""
        return b"".join(_event(event) for delta in deltas for event in self._take(delta))

    def ending(self, usage: TokenUsage) -> bytes:
        """Returns the events after the last delta."""
        events = [*self._end_block()]
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        events.append(
            {"type": "message_delta", "delta": delta, "usage": _usage(usage.num_prompt, usage.num_completion)}
        )
        events.append({"type": "message_stop"})
        return b"".join(map(_event, events))

    def failure(self, error: ApiError) -> bytes:
        """Returns the event that a broken stream ends with."""
        return _event(message_error(error.status_code, error.code, error.message)[1])

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Takes deltas into the reply that is not streamed."""
        for delta in deltas:
            for _ in self._take(delta):
                pass

    def whole(self, usage: TokenUsage) -> bytes:
        """Returns the reply that is not streamed."""
        for _ in self._end_block():
            pass
        return dump_json(
            {
                **self._head,
                "content": self._blocks,
                "stop_reason": self._stop_reason,
                "stop_sequence": self._stop_sequence,
                "usage": _usage(usage.num_prompt, usage.num_completion),
            }
        )

    def _take(self, delta: ChoiceDelta) -> Iterator[JsonDict]:
        pieces: Sequence[Event] = delta.events or () if delta.events is not None else [Content(delta.text)]
        for piece in pieces:
            match piece:
                case Content(text):
                    yield from self._take_text(text)
                case CallStart(name):
                    block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": {}}
                    yield from self._begin_block(block)
                case CallArguments(text):
                    self._parts.append(text)
                    if text and not self._takes_text:
                        yield self._delta({"type": "input_json_delta", "partial_json": text})
        if delta.finish_reason is not None:
            self._stop_reason = _STOP_REASONS.get(delta.finish_reason, "end_turn")
            if delta.stop_reason in self._stop_sequences:
                self._stop_reason, self._stop_sequence = "stop_sequence", delta.stop_reason

    def _take_text(self, text: str) -> Iterator[JsonDict]:
        if not text:
            return
        if not self._is_open or self._blocks[-1]["type"] != "text":
            yield from self._begin_block({"type": "text", "text": ""})
        self._parts.append(text)
        yield self._delta({"type": "text_delta", "text": text})

    @property
    def _takes_text(self) -> bool:
        return self._blocks[-1].get("name") in self._text_tools

    def _begin_block(self, block: JsonDict) -> Iterator[JsonDict]:
        yield from self._end_block()
        self._blocks.append(block)
        self._is_open = True
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _delta(self, delta: JsonDict) -> JsonDict:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _end_block(self) -> Iterator[JsonDict]:
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


def _object(text: str) -> JsonDict:
    """The input of a call; one that was cut off by max_tokens is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {"input": value}


def _usage(num_input: int, num_output: int) -> JsonDict:
    return {
        "input_tokens": num_input,
        "output_tokens": num_output,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def _event(event: JsonDict) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (str(event["type"]).encode(), dump_json(event))
