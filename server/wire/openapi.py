"""The OpenAPI document: what its operations may answer, without FastAPI's own 422, which no route of ours sends."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.wire.errors import ErrorReply


def install_openapi(app: FastAPI) -> None:
    """Makes the app's document say no more than its routes do."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    _name_bounds(document["components"]["schemas"])
    return document


# Pydantic's names for bounds, where a function of ours has looked at the value before, and JSON schema's.
BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def _name_bounds(node: Any) -> None:
    """Gives bounds the names that JSON schema has for them, everywhere below a schema."""
    if isinstance(node, list):
        for item in node:
            _name_bounds(item)
    if isinstance(node, dict):
        for name, keyword in BOUNDS.items():
            if isinstance(node.get(name), int | float):
                bound = node.pop(name)
                for branch in node.get("anyOf", [node]):
                    if branch.get("type") in ("integer", "number"):
                        branch[keyword] = bound
        for value in node.values():
            _name_bounds(value)


Responses = dict[int | str, dict[str, Any]]
CHUNKS = "The reply, or with `stream` its chunks as server-sent events"


def success_reply(model: type[Any], description_of_streams: str = "") -> Responses:
    """Returns the document's entry for a good reply; one that may be streamed needs a description."""
    streams = {"description": description_of_streams, "content": {"text/event-stream": {}}}
    return {200: {"model": model, **(streams if description_of_streams else {})}}


def error_reply(status: int, description: str) -> Responses:
    """Returns the document's entry for an error."""
    return {status: {"model": ErrorReply, "description": description}}


BAD_REQUEST = error_reply(400, "The request cannot be served as asked") | error_reply(413, "The body is too large")
NOT_FOUND = error_reply(404, "No such model")
UNAVAILABLE = error_reply(503, "The engine is loading, recovering, draining or gone")
COMMON_ERRORS = (
    error_reply(401, "A key is missing or wrong")
    | error_reply(403, "A page of another origin, or a name this server does not go by")
    | error_reply(500, "The server failed")
)
GENERATION_ERRORS = (
    BAD_REQUEST
    | NOT_FOUND
    | UNAVAILABLE
    | COMMON_ERRORS
    | error_reply(429, "Too many requests wait")
    | error_reply(504, "The request took longer than the server allows")
)
