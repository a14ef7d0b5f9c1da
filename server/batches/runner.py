"""Carries batches on, from their first look to their files; those that a start finds in the store too.

Each has a task. Of one caller one batch is looked at and one is done at a time, in their order. A line's result is
stored together with the batch's counts, and nothing else says that it was done: what a kill interrupts is done again,
and what is stored never.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI

from model.contract.errors import InvalidRequestError
from server.batches.batch import BATCH, TERMINAL, Batch
from server.batches.line_request import LineClient
from server.batches.lines import Line, LineChecker, read_lines
from server.batches.slots import Slots
from server.engine.client import EngineClient
from server.files.stored_files import CONTENT
from server.gates.callers import Caller
from server.gates.credentials import Credentials
from server.gates.request_context import name_task, request_id_var
from server.store.errors import StoreError
from server.store.records import Change
from server.store.store import Store
from server.wire.errors import ApiError
from server.wire.shapes.files import BatchRequest

logger = logging.getLogger(__name__)

MAX_ACTIVE = 100
_RETRY_STORE_S = 5.0
# Lines given up are written so many at a time.
_GIVEN_UP_TOGETHER = 500
# A line of so many bytes is parsed on a thread.
_LONG_LINE_BYTES = 1 << 16


class _Lane:
    """One caller's batches.

    Attributes:
        checking: held by the one that is looked at.
        running: held by the one whose lines are done.
        has_room: results can be stored; without it no lines are begun.
    """

    def __init__(self) -> None:
        self.checking = asyncio.Lock()
        self.running = asyncio.Lock()
        self.has_room = asyncio.Event()
        self.has_room.set()


class BatchRunner:
    """All batches that are not over.

    Args:
        store: that holds them.
        app: answers their lines.
        engine: that does them in the end.
        credentials: know weights of keys, and which are still valid.
        num_slots: lines in the engine at a time.
        max_line_bytes: the longest line.
    """

    def __init__(
        self,
        store: Store,
        app: FastAPI,
        engine: EngineClient,
        credentials: Credentials,
        *,
        num_slots: int,
        max_line_bytes: int,
    ) -> None:
        self._store = store
        self._client = LineClient(app, engine)
        self._credentials = credentials
        self._max_line_bytes = max_line_bytes
        self._slots = Slots(num_slots)
        self._lanes: dict[str, _Lane] = {}
        self._tasks: dict[str, tuple[Batch, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Goes on with what the last server left."""
        for stored in await self._store.all_of(BATCH):
            try:
                batch = Batch(stored)
            except KeyError as error:
                logger.error("%s is damaged in the store, and is left alone: it has no %s", stored.id, error)
                continue
            if batch.status in TERMINAL:
                continue
            if self._credentials.required and not self._credentials.knows(batch.owner):
                logger.warning("%s waits: its key is not valid any more", batch.id)
                continue
            self._spawn(batch)

    async def stop(self) -> None:
        """Leaves everything as it is stored."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(self, request: BatchRequest, owner: str) -> Batch:
        """Takes a batch; it is stored, and will be looked at.

        Raises:
            ApiError: 429, the caller has too many.
            StoreError: it could not be stored.
        """
        if sum(batch.owner == owner for batch, _ in self._tasks.values()) >= MAX_ACTIVE:
            raise ApiError(
                429, f"You have {MAX_ACTIVE} batches that are not over; wait for one of them.",
                type="rate_limit_exceeded", code="too_many_batches", headers={"Retry-After": "60"},
            )  # fmt: skip
        batch = Batch.from_request(request, owner)
        await self._store.write(batch.put())
        self._spawn(batch)
        return batch

    async def cancel(self, id: str) -> Batch | None:
        """Ends a batch early; None where it is over, or about to be.

        Raises:
            StoreError: that could not be stored.
        """
        batch, task = self._tasks.get(id, (None, None))
        if batch is None or task is None or batch.status not in ("validating", "in_progress", "cancelling"):
            return None
        if batch.status != "cancelling":
            change = batch.enter("cancelling")
            task.cancel()  # before anything is waited for: it must not come to its end meanwhile
            await self._store.write(change)
        return batch

    def _spawn(self, batch: Batch) -> None:
        task = asyncio.create_task(self._carry_on(batch), name=batch.id)
        self._tasks[batch.id] = (batch, task)
        task.add_done_callback(lambda _: self._forget(batch))

    def _forget(self, batch: Batch) -> None:
        del self._tasks[batch.id]
        if all(other.owner != batch.owner for other, _ in self._tasks.values()):
            self._lanes.pop(batch.owner, None)

    async def _carry_on(self, batch: Batch) -> None:
        """Takes a batch to its end."""
        request_id_var.set(batch.id)
        lane = self._lanes.setdefault(batch.owner, _Lane())
        try:
            await self._do(batch, lane)
        except asyncio.CancelledError:
            if batch.status != "cancelling":
                raise  # the server ends
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            await self._end(batch, "cancelled")
        except Exception:
            logger.exception("%s failed", batch.id)
            await self._fail(batch, "internal_error", "The server failed on this batch; its log has the details.")

    async def _do(self, batch: Batch, lane: _Lane) -> None:
        if batch.status == "cancelling":
            await self._end(batch, "cancelled")
            return
        try:
            async with asyncio.timeout(max(0.0, batch.wire["expires_at"] - time.time())):
                if batch.status == "validating":
                    async with lane.checking:
                        is_good = await self._check(batch)
                    if not is_good:
                        return
                async with lane.running:
                    num_missing = await self._run(batch, lane)
        except TimeoutError:
            await self._expire(batch)
            return
        if num_missing:
            await self._fail(batch, "input_file_deleted", "The input file was deleted before all lines were done.")
        else:
            await self._end(batch, "completed")

    async def _check(self, batch: Batch) -> bool:
        """Looks at all lines; says whether they can be done."""
        checker = LineChecker(batch.wire["endpoint"])
        try:
            async for lines in read_lines(self._store, batch.owner, batch.wire["input_file_id"], self._max_line_bytes):
                await asyncio.to_thread(checker.check, lines)
                if checker.has_seen_enough:
                    break
        except InvalidRequestError as error:
            checker.add(error.code or "invalid", error.message)
        checker.finish()
        if checker.errors:
            logger.info("%s failed: %s", batch.id, checker.errors[0]["message"])
            await self._write([batch.fail(checker.errors)])
            return False
        await self._write(batch.begin(checker.num_lines))
        return True

    async def _run(self, batch: Batch, lane: _Lane) -> int:
        """Does the lines that have no result; returns how many the file lacks, because it was deleted."""
        caller = Caller(batch.owner, self._credentials.weight_of(batch.owner), has_key=bool(batch.owner))
        done = await self._count_done(batch)
        num_left = batch.counts["total"] - len(done)
        logger.info("%s: %d of %d lines to do", batch.id, num_left, batch.counts["total"])
        if not num_left:
            return 0
        num_seen = 0
        await self._client.engine_ready()  # one waits for it, not each line
        async with self._taking_part(caller), asyncio.TaskGroup() as group:
            async for line in self._lines(batch):
                num_seen += 1
                if str(line.number) not in done:
                    await lane.has_room.wait()
                    await self._slots.take(caller, len(line.text))
                    group.create_task(self._do_line(batch, line, caller, lane))
        return batch.counts["total"] - num_seen

    @asynccontextmanager
    async def _taking_part(self, caller: Caller) -> AsyncIterator[None]:
        await self._slots.enter(caller)
        try:
            yield
        finally:
            await self._slots.leave(caller)

    async def _lines(self, batch: Batch) -> AsyncIterator[Line]:
        async for lines in read_lines(self._store, batch.owner, batch.wire["input_file_id"], self._max_line_bytes):
            for line in lines:
                yield line

    async def _count_done(self, batch: Batch) -> set[str]:
        """Returns the lines that have results, and counts them."""
        output = await self._store.names(batch.owner, batch.output_id, CONTENT)
        errors = await self._store.names(batch.owner, batch.error_id, CONTENT)
        batch.counts["completed"], batch.counts["failed"] = len(output), len(errors)
        return {*output, *errors}

    async def _do_line(self, batch: Batch, line: Line, caller: Caller, lane: _Lane) -> None:
        request_id = f"{batch.id}-{line.number}"
        request_id_var.set(request_id)
        name_task(request_id)
        try:
            if len(line.text) > _LONG_LINE_BYTES:
                custom_id, body = await asyncio.to_thread(_parse, line.text)
            else:
                custom_id, body = _parse(line.text)
            status, reply = await self._client.ask(batch.wire["endpoint"], body, caller)
            result = batch.result(line.number, custom_id, status, request_id, reply)
            error = await self._try(result)
        finally:
            await self._slots.give_back(caller, len(line.text))
        if error is not None:  # its slot is for those who have room
            lane.has_room.clear()
            try:
                await self._write(result)
            finally:
                lane.has_room.set()

    async def _expire(self, batch: Batch) -> None:
        """Writes down what was not done in time, where it had begun."""
        if batch.status == "in_progress":
            done = await self._count_done(batch)
            left: list[Line] = []
            async for line in self._lines(batch):
                if str(line.number) not in done:
                    left.append(line)
                if len(left) >= _GIVEN_UP_TOGETHER:
                    await self._give_up(batch, left)
                    left = []
            await self._give_up(batch, left)
        await self._end(batch, "expired")

    async def _give_up(self, batch: Batch, lines: Sequence[Line]) -> None:
        if lines:
            ids = await asyncio.to_thread(lambda: [_parse(line.text)[0] for line in lines])
            await self._write(batch.give_up([line.number for line in lines], ids, "batch_expired"))

    async def _end(self, batch: Batch, status: str) -> None:
        """Makes files of the results, and is done."""
        if status == "completed":
            await self._write([batch.enter("finalizing")])
        await self._write(batch.end(status, *[
            await self._store.size_of(batch.owner, id, CONTENT) for id in (batch.output_id, batch.error_id)
        ]))  # fmt: skip
        logger.info("%s %s: %s", batch.id, status, batch.counts)

    async def _fail(self, batch: Batch, code: str, message: str) -> None:
        batch.wire["errors"] = {"object": "list", "data": [
            {"code": code, "line": None, "message": message, "param": None}
        ]}  # fmt: skip
        await self._end(batch, "failed")

    async def _write(self, changes: Sequence[Change]) -> None:
        """Stores what must not be lost: where there is no room now, waits for some."""
        error = await self._try(changes)
        if error is not None:
            logger.warning("a batch waits: %s", error)
        while error is not None:
            await asyncio.sleep(_RETRY_STORE_S)
            error = await self._try(changes)

    async def _try(self, changes: Sequence[Change]) -> StoreError | None:
        """Stores something; returns why that cannot be now."""
        try:
            await self._store.write(*changes)
        except StoreError as error:
            return error
        return None


def _parse(text: bytes) -> tuple[str, bytes]:
    """Returns the custom id and the body of a line that was looked at."""
    request = orjson.loads(text)
    return request["custom_id"], orjson.dumps(request["body"])
