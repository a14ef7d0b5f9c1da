"""The one shape of every error: `{"error": {"message", "type", "param", "code"}}`.

Knows how each failure is told to a client and nothing about where it arises. Messages say what to do;
no internals leave through here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from model.contract.errors import EngineUnavailableError, InvalidRequestError
from server.store.errors import StoreError, StoreFullError
from server.wire.missing_routes import missing_route

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 60
ENGINE_UNAVAILABLE = "engine_unavailable"
_UNAVAILABLE_RETRY_S = "5"
# orjson writes integers up to these bits; and so many levels, of the 254 at which it ends.
_MAX_INT_BITS = 63
_MAX_DEPTH = 200


class ErrorDetail(TypedDict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """Every error."""

    error: ErrorDetail


class ApiError(HTTPException):
    """An error reply, complete.

    Args:
        message: says what is wrong and what to do about it.
        type: OpenAI's error class, such as `invalid_request_error`.
        code: a machine-readable word, or None.
        param: the request field at fault, or None.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, detail=message, headers=dict(headers or {}))
        self.message = message
        self.type = type
        self.code = code
        self.param = param

    def body(self) -> ErrorReply:
        """Returns the wire object; also what a broken stream ends with."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Returns the HTTP reply."""
        return JsonResponse(self.body(), status_code=self.status_code, headers=self.headers)


class JsonResponse(Response):
    """A reply rendered by orjson; lone surrogates echoed from a request cannot break it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the body."""
        return dump_json(content)


def dump_json(content: Any) -> bytes:
    """Serialises wire objects; text that is not valid Unicode is repaired, numbers and depth are what JSON has."""
    try:
        return orjson.dumps(content)
    except orjson.JSONEncodeError:
        return orjson.dumps(_repaired(content))


def _repaired(content: Any, depth: int = 0) -> Any:
    if isinstance(content, str):
        return content.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(content, int) and content.bit_length() > _MAX_INT_BITS:
        return orjson.Fragment(str(content).encode())  # as the bounds in a client's schema may be
    if isinstance(content, dict):
        content = {_repaired(key): _repaired(value, depth + 1) for key, value in content.items()}
    elif isinstance(content, list | tuple):
        content = [_repaired(item, depth + 1) for item in content]
    else:
        return content
    return orjson.Fragment(orjson.dumps(content)) if depth % _MAX_DEPTH == _MAX_DEPTH - 1 else content


def server_overloaded(message: str, *, retry_after_s: int) -> ApiError:
    """429: more requests wait than may."""
    return _too_many(message, "server_overloaded", retry_after_s)


def rate_limited(message: str, *, retry_after_s: int) -> ApiError:
    """429: a key has used up what it may have."""
    return _too_many(message, "rate_limit_exceeded", retry_after_s)


def _too_many(message: str, code: str, retry_after_s: int) -> ApiError:
    headers = {"Retry-After": str(max(1, min(retry_after_s, MAX_RETRY_AFTER_S)))}
    return ApiError(429, message, type="rate_limit_exceeded", code=code, headers=headers)


def server_error() -> ApiError:
    """500: our own fault; the log has the details."""
    return ApiError(
        500,
        "The server had an error while processing the request; its log has the details under this x-request-id.",
        type="server_error",
        code="server_error",
    )


def as_api_error(error: BaseException) -> ApiError:
    """Turns any failure into what the client is told; what is not expected becomes a plain 500."""
    match error:
        case ApiError():
            return error
        case InvalidRequestError():
            return ApiError(400, error.message, code=error.code, param=error.param)
        case EngineUnavailableError():
            headers = {"Retry-After": _UNAVAILABLE_RETRY_S}
            return ApiError(503, str(error), type=ENGINE_UNAVAILABLE, code=ENGINE_UNAVAILABLE, headers=headers)
        case StoreFullError():
            return ApiError(507, str(error), code="storage_full", headers={"x-should-retry": "false"})
        case StoreError():
            return ApiError(503, str(error), type="server_error", code="storage_unavailable")
        case StarletteHTTPException():
            return _from_http_exception(error)
    return server_error()


def _from_http_exception(error: StarletteHTTPException) -> ApiError:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another one"
        message = f"This route does not take that method; use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return ApiError(error.status_code, str(error.detail), type=kind, headers=headers)


def validation_error(errors: Sequence[Any], body: Any) -> ApiError:
    """Names the first field at fault and everything that was wrong with it."""
    paths = [_field_path(error, body) for error in errors]
    path = paths[0]
    for other in paths:  # of a union's branches, the one that got furthest is the one that was meant
        if other[: len(path)] == path:
            path = other
    if not path:
        return ApiError(400, "Send one JSON object as the body, with the header 'Content-Type: application/json'.")
    messages: list[str] = []
    for error, place in zip(errors, paths, strict=True):
        message = _message(error)
        if place == path and message not in messages:
            messages.append(message)
    param = _dotted(path)
    return ApiError(400, f"'{param}': {'; or '.join(messages)}.", param=param)


# First bytes of compressed bodies, for clients that send no Content-Encoding.
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x78\x9c": "deflate", b"\x78\xda": "deflate"}


def unreadable_body(cause: BaseException, encoding: str) -> ApiError:
    """Says why a body could not be read as JSON.

    Args:
        cause: what the JSON reader raised.
        encoding: the header Content-Encoding; empty without one.
    """
    if encoding.lower() in ("", "identity") and isinstance(cause, UnicodeDecodeError):
        encoding = next((name for start, name in _COMPRESSED.items() if cause.object.startswith(start)), "")
    if encoding.lower() not in ("", "identity"):
        return ApiError(
            415, f"The body is compressed ({encoding}), which this server does not take; send it as it is.",
            code="unsupported_media_type",
        )  # fmt: skip
    if isinstance(cause, UnicodeDecodeError):
        bad = f"byte 0x{cause.object[cause.start]:02x} at position {cause.start}"
        return ApiError(400, f"The body is not UTF-8 ({bad}); encode the JSON in UTF-8.")
    reason = "it is nested too deeply" if isinstance(cause, RecursionError) else str(cause).split(";")[0]
    return ApiError(400, f"The body is not valid JSON: {reason}. Send one JSON object.")


def _message(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:]


def _field_path(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Returns the part of a pydantic location that exists in the body; names of union branches are left out."""
    loc: Sequence[str | int] = error["loc"]
    path: list[str | int] = []
    place = body
    steps = loc[1:] if loc and loc[0] in ("body", "query", "path") else loc
    for step in steps:
        if isinstance(place, dict) and isinstance(step, str):
            if step in place:
                place = place[step]
                path.append(step)
            elif step is steps[-1] and error["type"] == "missing":
                path.append(step)
        elif isinstance(place, list) and isinstance(step, int) and step < len(place):
            place = place[step]
            path.append(step)
    return tuple(path)


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def install_error_handlers(app: FastAPI, paths: Sequence[str]) -> None:
    """Makes every error of the app, whose routes have these paths, leave in the one shape."""

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first.get("type") == "json_invalid":
            reason = f"{first['ctx']['error']} at character {first['loc'][-1]}"
            return unreadable_body(ValueError(reason), request.headers.get("content-encoding", "")).response()
        return validation_error(error.errors(), error.body).response()

    async def on_error(request: Request, error: Exception) -> Response:
        match error:
            case ApiError():
                pass
            case StarletteHTTPException(status_code=404, headers=headers):
                error = ApiError(404, missing_route(request.scope["path"], paths), code="not_found", headers=headers)
            case StarletteHTTPException(status_code=400, __cause__=BaseException() as cause):
                error = unreadable_body(cause, request.headers.get("content-encoding", ""))
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, on_validation_error)
    for kind in (StarletteHTTPException, InvalidRequestError, EngineUnavailableError, StoreError):
        app.add_exception_handler(kind, on_error)
