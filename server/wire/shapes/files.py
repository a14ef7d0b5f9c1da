"""Files and batches as they come and go over the wire."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from server.wire.openapi import BAD_REQUEST, COMMON_ERRORS, error_reply
from server.wire.shapes.fields import MAX_METADATA, Integer, Metadata, WireModel
from server.wire.shapes.generation import RequestBody
from server.wire.shapes.pages import Page

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
# The routes to which the lines of a batch may go.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MIN_EXPIRY_S = 3600
MAX_EXPIRY_S = 30 * 86400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")


def window_seconds(window: str) -> int:
    """Returns the seconds of a completion window such as 24h.

    Raises:
        ValueError: it is no time of at most 30 days.
    """
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= MAX_EXPIRY_S:
        raise ValueError("should be a time of at most 30 days, such as 24h, 30m or 45s")
    return seconds


def _check_window(window: str) -> str:
    window_seconds(window)
    return window


class ExpiresAfter(WireModel):
    """When files are dropped."""

    anchor: Literal["created_at"]
    seconds: Integer = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class BatchRequest(RequestBody):
    """POST /v1/batches."""

    input_file_id: str = Field(description="a file of purpose batch: a request a line")
    endpoint: str = Field(description=f"where its requests go: {', '.join(ENDPOINTS)}")
    completion_window: Annotated[str, AfterValidator(_check_window)] = Field(
        description="how long it may take, such as 24h; what is not done by then is not done", examples=["24h"]
    )
    metadata: Metadata | None = Field(None, description=f"up to {MAX_METADATA} texts of your own")
    output_expires_after: ExpiresAfter | None = Field(None, description="when output and error file are dropped")


class FileObject(TypedDict):
    """A stored file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: NotRequired[int | None]
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: NotRequired[None]


class FileList(Page):
    """Files, the newest first."""

    data: list[FileObject]


class FileDeleted(TypedDict):
    """What was deleted."""

    id: str
    object: Literal["file"]
    deleted: bool


class RequestCounts(TypedDict):
    """Requests of a batch."""

    total: int
    completed: int
    failed: int


class BatchError(TypedDict):
    """What is wrong with an input file."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(TypedDict):
    """All of it, or its beginning."""

    object: Literal["list"]
    data: list[BatchError]


class InputDetails(TypedDict):
    """What of the input was cached."""

    cached_tokens: int


class OutputDetails(TypedDict):
    """What of the output was reasoning; these models have none."""

    reasoning_tokens: int


class BatchUsage(TypedDict):
    """The tokens of all lines that succeeded."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchObject(TypedDict):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    model: str | None
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(Page):
    """Batches, the newest first."""

    data: list[BatchObject]


NO_ROOM = error_reply(507, "What it would store has no room")
UNSTORED = error_reply(503, "What is stored cannot be read or written now")
STORE_ERRORS = BAD_REQUEST | COMMON_ERRORS | UNSTORED | NO_ROOM
