"""Errors of Anthropic's routes, wherever they arise: `{"type": "error", "error": {"type", "message"}}`.

Gates and handlers know one shape, OpenAI's. This middleware rewrites the errors of this API's paths.
"""

from __future__ import annotations

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.wire.errors import dump_json
from server.wire.shapes.messages import MessageError

_PATH = "/v1/messages"
_OVERLOADED = 529
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}


def is_messages_path(path: str) -> bool:
    """Tells whether a path belongs to this API."""
    return path == _PATH or path.startswith(_PATH + "/")


def message_error(
    status: int, code: str | None, message: str, request_id: str | None = None
) -> tuple[int, MessageError]:
    """Returns status and body of an error that has this status, code and message in OpenAI's API."""
    if status == 429 and code == "server_overloaded":
        status = _OVERLOADED  # the server's load, not the client's limit
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    body: MessageError = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id is not None:
        body["request_id"] = request_id
    return status, body


class AnthropicErrorMiddleware:
    """Writes errors of this API's paths in its shape, and the request's id under its name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or not is_messages_path(scope["path"]):
            await self._app(scope, receive, send)
            return
        held: Message | None = None  # the beginning of an error, until its body is there

        async def send_in_shape(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                request_id = headers.get("x-request-id")
                if request_id is not None:
                    headers["request-id"] = request_id
                if message["status"] >= 400 and headers.get("content-type", "").startswith("application/json"):
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                body = _in_shape(start, message.get("body", b""))
                await send(start)
                message = {**message, "body": body}
            await send(message)

        await self._app(scope, receive, send_in_shape)


def _in_shape(start: Message, body: bytes) -> bytes:
    """Returns the body of an error in this API's shape, and sets its status and length."""
    try:
        error = orjson.loads(body)["error"]
        status, shaped = message_error(
            start["status"], error["code"], error["message"], Headers(raw=start["headers"]).get("x-request-id")
        )
    except (ValueError, KeyError, TypeError):
        return body
    start["status"] = status
    body = dump_json(shaped)
    MutableHeaders(scope=start)["content-length"] = str(len(body))
    return body
