"""The parts of batches: lines, slots, results that wait for room."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from server.batches import lines as batch_lines
from server.batches.batch import Batch
from server.batches.job import BatchJob, CallerLane
from server.batches.lines import Line, LineChecker, read_lines
from server.batches.runner import BatchRunner
from server.batches.slots import Slots
from server.files.stored_files import CONTENT, file_object
from server.gates.callers import Caller
from server.gates.credentials import Credentials
from server.store.errors import StoreFullError
from server.store.records import Append, Put, StoredObject
from server.store.store import Store
from server.wire.shapes.files import BatchRequest, window_seconds
from tests.server.batches.test_batches import CHAT, COMPLETION, line

Json = dict[str, Any]
GOOD = json.dumps(line(1)).encode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (GOOD.replace(b'"id 1"', b"1"), "invalid_custom_id"),
        (GOOD.replace(b"POST", b"GET"), "invalid_method"),
        (GOOD.replace(b"/v1/completions", b"/v1/chat/completions"), "mismatched_endpoint"),
        (GOOD.replace(b'"body": {', b'"body": [], "x": {'), "invalid_body"),
        (GOOD.replace(b'"body": {', b'"body": {"stream": true, '), "invalid_body"),
        (GOOD.replace(b'"body": {', b'"body": {"x": ' + b"[" * 300 + b"]" * 300 + b", "), "invalid_body"),
    ],
)
def test_lines_are_looked_at(text: bytes, code: str) -> None:
    checker = LineChecker(COMPLETION)
    checker.check([Line(3, text)])
    checker.finish()
    assert [(error["code"], error["line"]) for error in checker.errors] == [(code, 3)]


def test_a_file_has_some_lines_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = LineChecker(COMPLETION)
    empty.finish()
    assert empty.errors[0]["code"] == "empty_file"
    monkeypatch.setattr(batch_lines, "MAX_LINES", 2)
    many = LineChecker(COMPLETION)
    many.check([Line(n, json.dumps(line(n)).encode()) for n in range(3)])
    many.finish()
    assert [error["code"] for error in many.errors] == ["too_many_requests"]


async def test_lines_are_the_same_however_they_were_stored() -> None:
    text = b"\xef\xbb\xbfone\r\n\n  \ntwo\nthree"
    store = Store()
    store.start()
    try:
        for size in range(1, len(text) + 1):
            pieces = [text[start : start + size] for start in range(0, len(text), size)]
            await store.write(
                Put(file_object(str(size), "", "f", "batch", len(text))), Append(str(size), CONTENT, pieces)
            )
            found = [found async for lines in read_lines(store, "", str(size), 99) for found in lines]
            assert found == [(1, b"one\r"), (4, b"two"), (5, b"three")]
        with pytest.raises(Exception, match="Line 5 is longer than the 4 bytes"):
            _ = [lines async for lines in read_lines(store, "", "1", 4)]
    finally:
        store.close()


def test_blank_lines_cost_next_to_nothing() -> None:
    assert batch_lines._split(b"\n" * 1000 + b" \n\r", 0) == ([], 1001, b"\r")


def test_what_is_over_gives_way() -> None:
    wishes: Json = {"input_file_id": "f", "endpoint": CHAT, "completion_window": "24h"}
    batch = Batch.from_request(BatchRequest.model_validate(wishes), "")
    assert not batch.put().object.expendable
    assert batch.fail([]).object.expendable
    with pytest.raises(ValidationError) as caught:
        BatchRequest.model_validate({**wishes, "metadata": {str(n): n for n in range(1000)}})
    assert caught.value.error_count() == 1


async def test_a_result_that_waits_for_room_holds_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.batches.job._RETRY_STORE_S", 0.0)

    class Full:
        has_room = False

        async def write(self, *changes: Any) -> None:
            if not self.has_room:
                raise StoreFullError("no room")

    async def ask(*_: Any) -> tuple[int, bytes]:
        return 200, b"{}"

    store: Any = Full()
    client: Any = SimpleNamespace(ask=ask)
    slots = Slots(1)
    wishes: Json = {"input_file_id": "f", "endpoint": COMPLETION, "completion_window": "24h"}
    batch = Batch.from_request(BatchRequest.model_validate(wishes), "")
    ann, bob = Caller("ann"), Caller("bob")
    lane = CallerLane(caller=ann)
    job = BatchJob(batch, lane, store, client, slots, max_line_bytes=99)
    async with asyncio.timeout(5), slots.sharing(ann), slots.sharing(bob):
        await slots.take(ann, len(GOOD))
        doing = asyncio.create_task(job._do_line(Line(1, GOOD)))
        await slots.take(bob, 1)
        assert not lane.has_room.is_set(), "no more lines are begun"
        store.has_room = True
        await doing
    assert lane.has_room.is_set()


def test_windows() -> None:
    assert [window_seconds(window) for window in ("24h", "30d", "45s", "5m")] == [86400, 30 * 86400, 45, 300]
    for window in ("", "24", "0h", "31d", "1.5h", "-1h", "9999999d", "２４h"):
        with pytest.raises(ValueError, match="at most 30 days"):
            window_seconds(window)


async def test_callers_share_the_slots_by_weight() -> None:
    ann, bob = Caller("ann", 3), Caller("bob", 1)
    slots = Slots(8)
    async with asyncio.timeout(5), AsyncExitStack() as anns:
        await anns.enter_async_context(slots.sharing(ann))
        for _ in range(8):
            await slots.take(ann, 1)
        async with slots.sharing(bob):
            takers = [asyncio.create_task(slots.take(caller, 1)) for caller in (ann, bob, bob, bob)]
            for _ in range(2):
                await slots.give_back(ann, 1)
            await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(9):
                await asyncio.sleep(0)
            assert [taker.done() for taker in takers] == [False, True, True, False], "6 for ann, 2 for bob"
            takers[0].cancel()
            await anns.aclose()
            await slots.give_back(ann, 1)
            await takers[3]


async def test_a_damaged_batch_does_not_stop_the_start(caplog: pytest.LogCaptureFixture) -> None:
    store, engine = Store(), cast(Any, None)
    store.start()
    try:
        parts = {"output_id": "o", "error_id": "e", "expires_after_s": None}
        for number, body in enumerate(({}, {"wire": None, **parts}, {"wire": {}, **parts}, {"wire": [1], **parts})):
            await store.write(Put(StoredObject(id=f"batch_{number}", kind="batch", owner="", body=body)))
        runner = BatchRunner(store, FastAPI(), engine, Credentials(), num_slots=1, max_line_bytes=99)
        await runner.start()
        assert caplog.text.count("is damaged in the store, and is left alone") == 4
        assert not runner._tasks
    finally:
        store.close()
