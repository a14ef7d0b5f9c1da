"""A generation as a reply: server-sent events, or one JSON object folded from the same deltas.

Both free the engine at once when the client goes away, whatever the request was doing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.gates.direct_body import DirectBody
from server.gates.request_context import name_task, request_id_var
from server.replies.generation import Generation, TokenUsage
from server.replies.output_processor import ChoiceDelta
from server.wire.errors import ApiError, as_api_error

logger = logging.getLogger(__name__)

_MANY_SCORES = 512

T = TypeVar("T")


class Reply(Protocol):
    """Writes the reply to a request as one API has it: as events of a stream, or whole."""

    def beginning(self) -> bytes:
        """Returns the events before the first delta."""

    def events(self, deltas: Sequence[ChoiceDelta], usage: Callable[[], TokenUsage]) -> bytes:
        """Returns the events of some deltas; `usage` returns the tokens so far."""

    def ending(self, usage: TokenUsage) -> bytes:
        """Returns the events after the last delta."""

    def failure(self, error: ApiError) -> bytes:
        """Returns the events that a broken stream ends with."""

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        """Adds deltas to the reply that is not streamed."""

    def whole(self, usage: TokenUsage) -> bytes:
        """Returns the reply that is not streamed, a JSON text."""


class EventsResponse(EventSourceResponse):
    """A reply of server-sent events.

    Args:
        ping_interval_s: seconds between comments while nothing else is sent; 0 sends none.
        close: called however the stream ends.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        ping_interval_s: float,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            events,
            sep="\n",
            ping=ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            headers={"Cache-Control": "no-cache"},
        )
        # The HTTP protocol writes this header, and must write it once.
        del self.headers["connection"]
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()  # also if the client left before the first event was asked for


class _EventSink:
    """Writes the events of deltas straight to the client."""

    def __init__(self, generation: Generation, reply: Reply, body: DirectBody) -> None:
        self._generation = generation
        self._reply = reply
        self._body = body
        self.is_open = body.is_open

    def write(self, deltas: list[ChoiceDelta]) -> None:
        if events := self._reply.events(deltas, self._generation.usage):
            self._body.write(events)


async def stream_events(
    generation: Generation,
    reply: Reply,
    keep: Callable[[], Awaitable[None]] | None = None,
    body: DirectBody | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yields the events of a stream, as bytes; what is ready together is yielded together.

    Args:
        keep: is awaited before the stream ends well.
        body: the connection's end of the stream; most events are written there without waking this generator.
    """
    name_task(request_id_var.get())
    try:
        if beginning := reply.beginning():
            yield beginning
        sink = None if body is None else _EventSink(generation, reply, body)
        async with aclosing(generation.deltas(sink=sink)) as all_deltas:
            async for deltas in all_deltas:
                if events := await _off_loop_if_long(deltas, partial(reply.events, deltas, generation.usage)):
                    yield events
        if keep is not None:
            await keep()
        yield reply.ending(generation.usage())
    except Exception as error:
        api_error = as_api_error(error)
        if api_error.status_code == 500:
            logger.exception("a stream broke")
        yield reply.failure(api_error)


async def _off_loop_if_long(deltas: list[ChoiceDelta], work: Callable[[], T]) -> T:
    """Does work with deltas, on a thread if they hold the scores of a long prompt, which come all at once."""
    num_scores = sum(len(delta.prompt_logprobs or ()) for delta in deltas)
    return await asyncio.to_thread(work) if num_scores > _MANY_SCORES else work()


async def whole_reply(generation: Generation, reply: Reply, keep: Callable[[], Awaitable[None]] | None = None) -> bytes:
    """Returns the reply, a JSON text, when the generation has ended and `keep` was awaited."""
    async with aclosing(generation.deltas()) as all_deltas:
        async for deltas in all_deltas:
            await _off_loop_if_long(deltas, partial(reply.add, deltas))
    if keep is not None:
        await keep()
    return reply.whole(generation.usage())
