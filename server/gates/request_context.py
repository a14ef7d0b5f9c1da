"""The id, body size, figures and route of the request being served, for log lines, metrics, spans and replies.

Context variables, so that every coroutine started for a request inherits them.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from starlette.types import Scope

NO_REQUEST = "-"
request_id_var: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)
# The size of its body decides whether work for it is done on the event loop.
body_bytes_var: ContextVar[int] = ContextVar("body_bytes", default=0)
# A generation leaves the figures of its log line here for the request's span; None: it is not traced.
request_figures_var: ContextVar[dict[str, object] | None] = ContextVar("request_figures", default=None)

_SANE_ID = re.compile(r"[A-Za-z0-9._:@/+=-]{1,128}")


def name_task(request_id: str) -> None:
    """Names the running task after its request, for the watchdog, which reads the name from another thread."""
    task = asyncio.current_task()
    if task is not None:
        task.set_name(request_id)


def choose_request_id(offered: str | None) -> str:
    """Returns the client's own id if it is short and harmless in a header and a log, else a new one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return f"req-{uuid.uuid4().hex}"


def route_path(scope: Scope) -> str | None:
    """Returns the pattern of a request's route, never a client's text; None where there is no such route.

    The router has not seen requests that a gate refused: for them the routes are searched.
    """
    route = scope.get("route")
    if route is None and "app" in scope:
        from starlette.routing import Match  # not above: commands that only read settings come by here

        matches = ((route.matches(scope)[0], route) for route in _flat(scope["app"].router.routes))
        route = next((route for match, route in matches if match is not Match.NONE), None)
    return getattr(route, "path", None)


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    """Newer FastAPIs keep an included router as one route, older ones take it apart themselves."""
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from [route] if included is None else _flat(included.routes)
