"""Writes pieces of a streamed body straight to the connection.

An ASGI message wakes a task and passes every middleware: some 20 microseconds of a core, for each token of each stream.
Events that the engine's callback has made may go around them, once the reply has begun and while its client keeps up.
"""

from __future__ import annotations

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_EXTENSION = "qwen.direct_body"


class DirectBody:
    """The body of one reply. No ASGI message of the same body may be on its way while a piece is written."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    def is_open(self) -> bool:
        """Whether the reply has begun and not ended, and its client is there and keeps up with reading."""
        cycle = self._cycle
        # Without chunks (HTTP/1.0, HEAD, a known length) the cycle counts bytes: what is sent goes through it.
        return bool(cycle.chunked_encoding) and not (
            self._flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    def write(self, data: bytes) -> None:
        """Writes a piece, which must not be empty: that would end the body."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def offer_direct_body(cycle: RequestResponseCycle) -> None:
    """Lets the application find the body of its reply, by `direct_body`."""
    scope: Scope = cycle.scope  # type: ignore[assignment]
    if scope["method"] != "HEAD":
        scope["extensions"] = {_EXTENSION: DirectBody(cycle)}


def direct_body(scope: Scope) -> DirectBody | None:
    """Returns the body of the reply to a request; None behind a server that does not offer it."""
    found = scope.get("extensions", {}).get(_EXTENSION)
    return found if isinstance(found, DirectBody) else None
