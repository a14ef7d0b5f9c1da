"""Chat streams that survive a lost connection: they are written into a log, which their client reads."""

from __future__ import annotations

import logging
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING

from server.detached.runs import Run
from server.gates.callers import Caller
from server.replies.chunk_reply import ChunkReply
from server.replies.generation import Generation
from server.replies.streaming import stream_events

if TYPE_CHECKING:
    from server.services import Services

logger = logging.getLogger(__name__)

# How long a stream goes on without a reader, and how long its events are kept when it is over.
RESUME_S = 300.0


def start_resumable(services: Services, caller: Caller, generation: Generation, reply: ChunkReply) -> Run:
    """Begins a stream that can be taken up again.

    Args:
        generation: already submitted; closed when it is over.
        reply: writes the events.

    Raises:
        ApiError: 429, too many of the caller's replies go on already.
        EngineUnavailableError: the server drains.
    """

    async def work(run: Run) -> None:
        try:
            async with aclosing(stream_events(generation, reply)) as events:
                async for data in events:
                    run.log.write(data)
                    if run.log.idle_s > RESUME_S:
                        logger.info("nobody came back for the stream %s", run.id)
                        return
        finally:
            generation.close()

    inside = ExitStack()
    try:
        inside.enter_context(services.runs.room(caller))
        inside.enter_context(services.admission.enter(caller, 0))
    except BaseException:
        generation.close()
        inside.close()
        raise
    return services.runs.start(reply.id, caller, work, inside=inside, keep_s=RESUME_S, shows_numbers=True)
