"""A batch that is not over: its stored object, and the changes that carry it on."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from server.files.stored_files import CONTENT, file_object, new_file_id
from server.store.records import Append, Change, Delete, Put, StoredObject
from server.wire.shapes.files import BatchError, BatchObject, BatchRequest, BatchUsage, RequestCounts, window_seconds

BATCH = "batch"
# The kind of output and error files while they are written.
_RESULTS = "batch_results"
TERMINAL = frozenset({"failed", "completed", "expired", "cancelled"})
_REASONS = {
    "batch_expired": "This request could not be executed before the completion window expired.",
}


class _Reply(msgspec.Struct):
    """The fields of a reply that are counted. The decoder skips the rest, which may be megabytes of logprobs."""

    model: str | None = None
    usage: dict[str, Any] | None = None


_REPLY = msgspec.json.Decoder(_Reply)


class Batch:
    """One batch.

    Args:
        stored: its object.

    Attributes:
        owner: key of the caller (`Caller.owner`).
        wire: the batch as clients see it.
        output_id: file of the replies.
        error_id: file of the errors.
        expires_after_s: how long these files are kept; None is for good.
    """

    def __init__(self, stored: StoredObject) -> None:
        self.owner = stored.owner
        self.wire = batch_object(stored)
        self.output_id: str = stored.body["output_id"]
        self.error_id: str = stored.body["error_id"]
        self.expires_after_s: int | None = stored.body["expires_after_s"]

    @classmethod
    def from_request(cls, request: BatchRequest, owner: str) -> Batch:
        """Returns a new batch."""
        now = int(time.time())
        wire: BatchObject = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": request.endpoint,
            "errors": None,
            "input_file_id": request.input_file_id,
            "completion_window": request.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + window_seconds(request.completion_window),
            "in_progress_at": None,
            "finalizing_at": None,
            "completed_at": None,
            "failed_at": None,
            "expired_at": None,
            "cancelling_at": None,
            "cancelled_at": None,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "model": None,
            "usage": _usage_of({}),
            "metadata": request.metadata,
        }
        expires_after = request.output_expires_after
        body = {
            "wire": wire,
            "output_id": new_file_id(),
            "error_id": new_file_id(),
            "expires_after_s": None if expires_after is None else expires_after.seconds,
        }
        return cls(StoredObject(id=wire["id"], kind=BATCH, owner=owner, body=body))

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.wire["id"]

    @property
    def status(self) -> str:
        """The batch's status."""
        return self.wire["status"]

    @property
    def counts(self) -> RequestCounts:
        """Numbers of lines: total, completed, failed."""
        return self.wire["request_counts"]

    def put(self) -> Put:
        """Returns the change that stores the batch as it is now."""
        body = {
            "wire": copy.deepcopy(self.wire),
            "output_id": self.output_id,
            "error_id": self.error_id,
            "expires_after_s": self.expires_after_s,
        }
        is_over = self.status in TERMINAL  # clients cannot delete batches, so they must not take room for good
        return Put(StoredObject(id=self.id, kind=BATCH, owner=self.owner, body=body, expendable=is_over))

    def enter(self, status: str) -> Put:
        """Changes the status."""
        wire: Any = self.wire  # the status names a key
        wire |= {"status": status, f"{status}_at": int(time.time())}
        return self.put()

    def begin(self, num_lines: int) -> Sequence[Change]:
        """Changes the status when all lines were found good."""
        self.counts["total"] = num_lines
        results = [
            Put(StoredObject(id=id, kind=_RESULTS, owner=self.owner, body={})) for id in (self.output_id, self.error_id)
        ]
        return [*results, self.enter("in_progress")]

    def fail(self, errors: list[BatchError]) -> Put:
        """Ends the batch, because lines cannot be done."""
        self.wire["errors"] = {"object": "list", "data": errors}
        return self.enter("failed")

    def result(self, number: int, custom_id: str, status: int, request_id: str, reply: bytes) -> Sequence[Change]:
        """Adds the answer to a line, a reply or an error."""
        response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(reply)}
        is_good = status == 200
        if is_good:
            self._count_usage(reply)
        self.counts["completed" if is_good else "failed"] += 1
        text = _result_line(custom_id, response, None)
        return [Append(self.output_id if is_good else self.error_id, CONTENT, [text], [str(number)]), self.put()]

    def _count_usage(self, reply: bytes) -> None:
        told = _REPLY.decode(reply)
        self.wire["model"] = self.wire["model"] or told.model
        self.wire["usage"] = _sum(self.wire["usage"], _usage_of(told.usage or {}))

    def give_up(self, numbers: Sequence[int], custom_ids: Sequence[str], code: str) -> Sequence[Change]:
        """Adds errors for lines that will not be done."""
        self.counts["failed"] += len(numbers)
        error = {"code": code, "message": _REASONS[code]}
        texts = [_result_line(custom_id, None, error) for custom_id in custom_ids]
        return [Append(self.error_id, CONTENT, texts, [str(number) for number in numbers]), self.put()]

    def end(self, status: str, output: tuple[int, int], errors: tuple[int, int]) -> Sequence[Change]:
        """Ends the batch; its results become files.

        Args:
            output: lines and bytes of the output file.
            errors: lines and bytes of the error file.
        """
        self.counts["completed"], self.counts["failed"] = output[0], errors[0]
        self.wire["output_file_id"] = self.output_id if output[0] else None
        self.wire["error_file_id"] = self.error_id if errors[0] else None
        files = [self._file(self.output_id, "output", *output), self._file(self.error_id, "error", *errors)]
        return [*files, self.enter(status)]

    def _file(self, id: str, name: str, num_lines: int, num_bytes: int) -> Change:
        if not num_lines:
            return Delete(id)
        name = f"{self.id}_{name}.jsonl"
        return Put(file_object(id, self.owner, name, "batch_output", num_bytes, self.expires_after_s))


def batch_object(stored: StoredObject) -> BatchObject:
    """Returns a stored batch as clients see it; what older versions stored lacks the fields that came since."""
    wire: BatchObject = {"model": None, "usage": _usage_of({})} | stored.body["wire"]
    return wire


def _usage_of(usage: dict[str, Any]) -> BatchUsage:
    """Returns a reply's usage under a batch's names, whichever API it is of."""
    num_in = usage.get("input_tokens", usage.get("prompt_tokens", 0))
    num_out = usage.get("output_tokens", usage.get("completion_tokens", 0))
    details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": num_in,
        "input_tokens_details": {"cached_tokens": details.get("cached_tokens", 0)},
        "output_tokens": num_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_in + num_out,
    }


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {name: _sum(value, other[name]) for name, value in one.items()}
    return one + other


def _result_line(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
