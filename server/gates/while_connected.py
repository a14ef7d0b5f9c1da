"""Work for a client, given up when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from server.gates.request_context import request_id_var
from server.wire.errors import ApiError

# nginx and others log this status for a client that hung up; nobody reads the reply.
CLIENT_CLOSED_REQUEST = 499

T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of `work`, which is cancelled when the client leaves.

    Args:
        receive: ASGI function of a request whose body has been read.

    Raises:
        ApiError: 499, the client has left.
    """
    working = asyncio.create_task(work, name=request_id_var.get())
    leaving = asyncio.create_task(_client_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(CLIENT_CLOSED_REQUEST, "The client has left.", code="client_closed_request")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
