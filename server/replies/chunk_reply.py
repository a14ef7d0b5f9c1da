"""The common part of chats and completions on the wire: chunks in server-sent events, and a reply folded from them."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from model.contract.tokenizer import Tokenizer
from prompts.reply_events import Content
from server.conversion.generation_request import GenerationRequest
from server.replies.generation import TokenUsage
from server.replies.output_processor import ChoiceDelta
from server.replies.server_sent_events import DONE_EVENT, data_event
from server.wire.errors import ApiError, dump_json
from server.wire.shapes.chat import ChatCompletion
from server.wire.shapes.completions import Completion
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.generation import SamplingFields, Usage


class ChunkReply(ABC):
    """The reply to one request, as chunks.

    Args:
        model: the name the request asked for.
        tokenizer: names tokens in log-probabilities.
        include_usage: end the stream with a chunk of usage.
        usage_so_far: and give every other chunk what was used until then.

    Attributes:
        id: the reply's id, which each of its chunks has.
    """

    _id_prefix: str
    _chunk_object: str

    def __init__(
        self,
        request: GenerationRequest,
        model: str,
        tokenizer: Tokenizer,
        *,
        include_usage: bool = False,
        usage_so_far: bool = False,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._include_usage = include_usage
        self._usage_so_far = include_usage and usage_so_far
        self.id = f"{self._id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._head = {"id": self.id, "object": self._chunk_object, "created": self._created, "model": model}
        self._begun = [False] * request.num_choices
        tells_more = self._usage_so_far or request.return_token_ids or request.num_logprobs is not None
        self._has_plain_events = not tells_more
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    @abstractmethod
    def chunks(self, delta: ChoiceDelta) -> Iterator[JsonObject]:
        """Yields the stream's chunks of one delta."""

    @abstractmethod
    def _text_chunk(self, index: int, text: str) -> JsonObject:
        """Returns the chunk of a delta of a choice that is nothing but text."""

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """Returns the bytes before and after the JSON of the text, in the plain events of a choice."""
        chunk = self._text_chunk(index, "")
        if self._include_usage:
            chunk["usage"] = None
        before, _, after = data_event(chunk).rpartition(b'""')  # nothing behind the text is empty
        self._frames[index] = frame = (before, after)
        return frame

    @abstractmethod
    def add_chunk(self, chunk: JsonObject) -> None:
        """Adds the next chunk to the reply that is not streamed."""

    @abstractmethod
    def result(self, usage: Usage) -> ChatCompletion | Completion:
        """Returns the reply that is not streamed, once all chunks were added."""

    def beginning(self) -> bytes:
        """Returns the events before the first delta: there are none."""
        return b""

    def events(self, deltas: Sequence[ChoiceDelta], usage: Callable[[], TokenUsage]) -> bytes:
        """Returns the events of some deltas."""
        if len(deltas) == 1 and (event := self._plain_event(deltas[0])) is not None:
            return event
        chunks = [chunk for delta in deltas for chunk in self.chunks(delta)]
        if self._include_usage:
            so_far = usage_object(usage()) if self._usage_so_far else None
            for chunk in chunks:
                chunk["usage"] = so_far
        return b"".join(map(data_event, chunks))

    def _plain_event(self, delta: ChoiceDelta) -> bytes | None:
        """Returns the event of a delta that is nothing but text, as nearly all are; None of another one."""
        index, text = delta.index, delta.text
        if delta.finish_reason is not None or not (self._has_plain_events and self._begun[index]):
            return None
        if delta.events is not None:
            if len(delta.events) != 1 or not isinstance(delta.events[0], Content):
                return None
            text = delta.events[0].text
        if not text:
            return b""
        before, after = self._frames.get(index) or self._frame(index)
        return before + dump_json(text) + after

    def ending(self, usage: TokenUsage) -> bytes:
        """Returns the events after the last delta."""
        if not self._include_usage:
            return DONE_EVENT
        return data_event({**self._head, "choices": [], "usage": usage_object(usage)}) + DONE_EVENT

    def failure(self, error: ApiError) -> bytes:
        """Returns the event that a broken stream ends with."""
        return failure_event(error)

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Adds deltas to the reply that is not streamed."""
        for delta in deltas:
            for chunk in self.chunks(delta):
                self.add_chunk(chunk)

    def whole(self, usage: TokenUsage) -> bytes:
        """Returns the reply that is not streamed."""
        return dump_json(self.result(usage_object(usage)))


def failure_event(error: ApiError, number: int = 0) -> bytes:
    """Returns the event that a broken stream ends with; chunks have no numbers."""
    return data_event(error.body())


def usage_object(usage: TokenUsage) -> Usage:
    """Returns the wire object."""
    return {
        "prompt_tokens": usage.num_prompt,
        "completion_tokens": usage.num_completion,
        "total_tokens": usage.num_prompt + usage.num_completion,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.num_expected,
            "rejected_prediction_tokens": max(0, usage.num_predicted - usage.num_expected),
        },
    }


def usage_options(request: SamplingFields) -> dict[str, bool]:
    """Returns the options of a `ChunkReply` that a request's `stream_options` ask for."""
    options = request.stream_options
    return {
        "include_usage": options is not None and bool(options.include_usage),
        "usage_so_far": options is not None and bool(options.continuous_usage_stats),
    }
