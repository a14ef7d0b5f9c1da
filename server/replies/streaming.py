"""A generation as a reply: server-sent events, or one JSON object folded from the same chunks.

Both free the engine at once when the client goes away, whatever the request was doing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.gates.request_context import name_task, request_id_var
from server.gates.while_connected import while_connected
from server.replies.generation import Generation
from server.replies.output_processor import ChoiceDelta
from server.wire.errors import JsonResponse, as_api_error, dump_json
from server.wire.requests import SamplingFields

logger = logging.getLogger(__name__)

DONE_EVENT = b"data: [DONE]\n\n"
_MANY_SCORES = 512

T = TypeVar("T")


class Reply(Protocol):
    """How one route writes its replies."""

    def chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """Yields the stream's chunks of one delta."""

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Returns the chunk with the usage."""

    def add(self, chunk: dict[str, Any]) -> None:
        """Takes the next chunk into the unstreamed reply."""

    def result(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Returns the unstreamed reply."""


class GenerationEventResponse(EventSourceResponse):
    """The event stream of a generation; however it ends, the generation is closed.

    Args:
        generation: already submitted.
        reply: writes the chunks.
        include_usage: end with a chunk of usage.
        usage_so_far: and let every chunk have it.
        ping_interval_s: between comments while nothing else is sent; 0 sends none.
    """

    def __init__(
        self,
        generation: Generation,
        reply: Reply,
        *,
        include_usage: bool,
        usage_so_far: bool,
        ping_interval_s: float,
    ) -> None:
        super().__init__(
            stream_events(generation, reply, include_usage=include_usage, usage_so_far=usage_so_far),
            sep="\n",
            ping=ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            headers={"Cache-Control": "no-cache"},
        )
        # Whether the connection is kept is the protocol's to say, and it says it once.
        del self.headers["connection"]
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()  # also if the client left before the first event was asked for


async def stream_events(
    generation: Generation, reply: Reply, *, include_usage: bool, usage_so_far: bool = False
) -> AsyncGenerator[bytes, None]:
    """Yields the events of a stream, as bytes; what is ready together is yielded together."""
    name_task(request_id_var.get())
    try:
        async with aclosing(generation.deltas()) as all_deltas:
            async for deltas in all_deltas:
                usage = generation.usage() if usage_so_far else None

                def write(deltas: list[ChoiceDelta] = deltas, usage: dict[str, Any] | None = usage) -> bytes:
                    chunks = [chunk for delta in deltas for chunk in reply.chunks(delta)]
                    if include_usage:
                        for chunk in chunks:
                            chunk["usage"] = usage
                    return b"".join(map(_event, chunks))

                if events := await _off_loop_if_long(deltas, write):
                    yield events
        if include_usage:
            yield _event(reply.usage_chunk(generation.usage()))
        yield DONE_EVENT
    except Exception as error:
        api_error = as_api_error(error)
        if api_error.status_code == 500:
            logger.exception("a stream broke")
        yield b"data: " + dump_json(api_error.body()) + b"\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + dump_json(chunk) + b"\n\n"


async def _off_loop_if_long(deltas: list[ChoiceDelta], work: Callable[[], T]) -> T:
    """Does what is to be done with deltas; the scores of a long prompt, which come all at once, are many."""
    num_scores = sum(len(delta.prompt_logprobs or ()) for delta in deltas)
    return await asyncio.to_thread(work) if num_scores > _MANY_SCORES else work()


async def respond(
    request: Request, generation: Generation, reply: Reply, wishes: SamplingFields, ping_interval_s: float
) -> Response:
    """Answers a generating request in the way it asks for.

    Args:
        request: whose body has been read.
        generation: already submitted.
        reply: writes the chunks.
        wishes: whether to stream, and with what options.
        ping_interval_s: between comments while a stream is idle; 0 sends none.
    """
    if not wishes.stream:
        return await whole_reply(request, generation, reply)
    options = wishes.stream_options
    return GenerationEventResponse(
        generation,
        reply,
        include_usage=options is not None and bool(options.include_usage),
        usage_so_far=options is not None and bool(options.continuous_usage_stats),
        ping_interval_s=ping_interval_s,
    )


async def whole_reply(request: Request, generation: Generation, reply: Reply) -> Response:
    """Waits for the end of a generation, or for its client to leave.

    Args:
        request: whose body has been read.
        generation: already submitted.
        reply: writes the chunks that are folded.
    """
    try:
        return JsonResponse(await while_connected(request.receive, _fold(generation, reply)))
    finally:
        generation.close()


async def _fold(generation: Generation, reply: Reply) -> dict[str, Any]:
    async with aclosing(generation.deltas()) as all_deltas:
        async for deltas in all_deltas:

            def add(deltas: list[ChoiceDelta] = deltas) -> None:
                for delta in deltas:
                    for chunk in reply.chunks(delta):
                        reply.add(chunk)

            await _off_loop_if_long(deltas, add)
    return reply.result(generation.usage())
