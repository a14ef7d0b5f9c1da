"""The lines of an input file: read piece by piece, and all checked before the first one is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import orjson

from model.contract.errors import InvalidRequestError
from server.files.stored_files import content_of
from server.store.store import Store
from server.wire.shapes.files import BatchError

MAX_LINES = 50_000
MAX_ERRORS = 100
_MAX_ID_CHARS = 512
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One request.

    Attributes:
        number: its place in the file, from 1; blank lines count.
        text: JSON.
    """

    number: int
    text: bytes


async def read_lines(store: Store, owner: str, file_id: str, max_bytes: int) -> AsyncIterator[list[Line]]:
    """Yields the lines of a file that are not blank, some at a time.

    Raises:
        InvalidRequestError: a line is longer than `max_bytes`.
    """
    number, rest = 0, b""
    async for piece in content_of(store, owner, file_id):
        lines, num_lines, rest = await asyncio.to_thread(_split, rest + piece, number)
        number += num_lines
        if too_long := next((line.number for line in lines if len(line.text) > max_bytes), None):
            raise _too_long(too_long, max_bytes)
        if len(rest) > max_bytes:
            raise _too_long(number + 1, max_bytes)
        yield lines
    yield _split(rest + b"\n", number)[0]


def _split(text: bytes, number: int) -> tuple[list[Line], int, bytes]:
    """Cuts a piece of a file into lines; one of 1 MiB may have a million of them.

    Args:
        text: the piece, behind the incomplete last line of the piece before.
        number: number of the last line before it.

    Returns:
        The complete lines that are not blank, the number of complete lines, and the incomplete last line.
    """
    *complete, rest = text.split(b"\n")
    if not number and complete:
        complete[0] = complete[0].removeprefix(_BOM)
    lines = [Line(n, line) for n, line in enumerate(complete, number + 1) if line and not line.isspace()]
    return lines, len(complete), rest


def _too_long(number: int, max_bytes: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"Line {number} is longer than the {max_bytes} bytes of a request (--max-body-bytes).", code="line_too_long"
    )


class LineChecker:
    """Checks the lines of a file in their order.

    Args:
        endpoint: the `url` that all requests must have.

    Attributes:
        num_lines: lines checked.
        errors: the batch's `errors`, at most MAX_ERRORS.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._ids: set[str] = set()
        self.num_lines = 0
        self.errors: list[BatchError] = []

    def check(self, lines: Sequence[Line]) -> None:
        """Checks the next lines."""
        for line in lines:
            self.num_lines += 1
            problem = self._problem(line.text)
            if problem is not None:
                code, message, param = problem
                self.add(code, message, line.number, param)
            if self.has_seen_enough:
                return

    @property
    def has_seen_enough(self) -> bool:
        """Whether more lines would not change the result."""
        return len(self.errors) >= MAX_ERRORS or self.num_lines > MAX_LINES

    def finish(self) -> None:
        """Notes that there are no more lines."""
        if self.num_lines > MAX_LINES:
            self.errors = []
            self.add("too_many_requests", f"A batch has at most {MAX_LINES} lines; send several.")
        elif not self.num_lines:
            self.add("empty_file", "The file has no lines.")

    def add(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Adds an error."""
        self.errors.append({"code": code, "line": line, "message": message, "param": param})

    def _problem(self, text: bytes) -> tuple[str, str, str | None] | None:
        try:
            request = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return "invalid_json_line", f"The line is not valid JSON: {error}.", None
        if not isinstance(request, dict):
            return "invalid_json_line", "The line should be a JSON object.", None
        custom_id = request.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_CHARS:
            message = f"'custom_id' should be a text of 1 to {_MAX_ID_CHARS} characters."
            return "invalid_custom_id", message, "custom_id"
        if custom_id in self._ids:
            return "duplicate_custom_id", f"'custom_id' {custom_id[:100]!r} is that of an earlier line.", "custom_id"
        self._ids.add(custom_id)
        if request.get("method") != "POST":
            return "invalid_method", "'method' should be POST.", "method"
        if request.get("url") != self._endpoint:
            return "mismatched_endpoint", f"'url' should be the batch's endpoint, {self._endpoint}.", "url"
        body = request.get("body")
        if not isinstance(body, dict):
            return "invalid_body", "'body' should be a JSON object, the request.", "body"
        if body.get("stream") or body.get("background"):
            return "invalid_body", "'stream' and 'background' are not for the requests of a batch.", "body"
        try:
            orjson.dumps(body)
        except orjson.JSONEncodeError:  # orjson reads deeper JSON than it writes
            return "invalid_body", "'body' is nested too deeply.", "body"
        return None
