"""Bodies are read within a budget, and off the event loop where they are large.

FastAPI parses and checks a body on the event loop, and both hold the interpreter: four megabytes of small objects took
0.8 s. Here the number of objects and lists is bounded before they are made, and what is large is read on a thread.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from server.gates.request_context import body_bytes_var
from server.off_loop import SMALL_BYTES
from server.wire.errors import ApiError, validation_error

# Objects and lists of a body together; each costs 5 to 10 microseconds and some hundred bytes.
MAX_CONTAINERS = 1 << 15
# Objects and lists within each other; a body may be quoted in a reply, which recursion writes.
MAX_DEPTH = 350

# The strings and openings of a text without escapes.
_STRING_OR_OPENING = re.compile(rb'"[^"]*"?|[{\[]')
_QUOTE = ord('"')


class BoundedJsonRoute(APIRoute):
    """A route that takes one JSON object, as a body within bounds."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns FastAPI's handler, given a request that reads its body in its own way."""
        handler = super().get_route_handler()
        field = self.body_field

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request, field))

        return handle


class JsonBodyRoute(BoundedJsonRoute):
    """A route that asks the engine for work, so that rate limits and the queue count its requests."""


class _JsonRequest(Request):
    def __init__(self, request: Request, field: Any) -> None:
        super().__init__(request.scope, request.receive, request._send)
        self._field = field

    async def json(self) -> Any:
        """Returns the body: parsed, or if it is large checked already too, which FastAPI then does not repeat.

        Raises:
            ApiError: too many objects, or fields that are wrong.
            JSONDecodeError: no JSON.
        """
        body = await self.body()
        body_bytes_var.set(len(body))
        if len(body) <= SMALL_BYTES:
            data = json.loads(body)
            refuse_deep(body, data)
            return data
        return await self.app.state.services.off_loop.run(lambda: self._read(body))

    def _read(self, body: bytes) -> Any:
        if _count_containers(body) > MAX_CONTAINERS:
            raise ApiError(
                400, f"The body has more than {MAX_CONTAINERS} JSON objects and lists; send several requests."
            )
        data = json.loads(body)
        refuse_deep(body, data)
        value, errors = self._field.validate(data, {}, loc=("body",))
        if errors:
            raise validation_error(errors, data)
        return value


def refuse_deep(body: bytes, data: object) -> None:
    """Refuses a body, parsed to `data`, that is nested too deeply to be quoted.

    Raises:
        ApiError: it has more than `MAX_DEPTH` levels.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    level: list[Any] = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise ApiError(400, f"The body is not valid JSON: it is nested too deeply, in more than {MAX_DEPTH} levels.")


def _count_containers(body: bytes) -> int:
    """Counts the objects and lists of a body, up to one more than there may be.

    Brackets in strings count too, unless they would make the difference.
    """
    count = body.count(b"{") + body.count(b"[")
    if count <= MAX_CONTAINERS or b"\0" in body:  # in which case it is UTF-16 or UTF-32
        return count
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    openings = (match for match in _STRING_OR_OPENING.finditer(bare) if bare[match.start()] != _QUOTE)
    return sum(1 for _ in itertools.islice(openings, MAX_CONTAINERS + 1))
