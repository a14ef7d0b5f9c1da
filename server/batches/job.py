"""One batch on its way, from the first look at its lines to its files.

A line's result is stored together with the batch's counts, and nothing else says that the line was done: what a kill
interrupts is done again, and what is stored never.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import orjson

from model.contract.errors import InvalidRequestError
from server.batches.batch import Batch
from server.batches.line_request import LineClient
from server.batches.lines import Line, LineChecker, read_lines
from server.batches.slots import Slots
from server.files.stored_files import CONTENT
from server.gates.callers import Caller
from server.gates.request_context import name_task, request_id_var
from server.store.errors import StoreError
from server.store.records import Change
from server.store.store import Store
from server.wire.shapes.files import BatchError

logger = logging.getLogger(__name__)

_RETRY_STORE_S = 5.0
# Lines given up are written so many at a time.
_GIVEN_UP_TOGETHER = 500
# Lines above this size are parsed on a thread.
_LONG_LINE_BYTES = 1 << 16


@dataclass(slots=True, kw_only=True)
class CallerLane:
    """What the batches of one caller share.

    Attributes:
        checking: held by the batch whose lines are being checked.
        running: held by the batch whose lines are being done.
        has_room: results can be stored; without it no lines are begun.
    """

    caller: Caller
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    running: asyncio.Lock = field(default_factory=asyncio.Lock)
    has_room: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.has_room.set()


@dataclass(eq=False, slots=True)
class BatchJob:
    """Takes a batch to its end.

    Attributes:
        slots: places for lines in the engine, of all batches.
        max_line_bytes: longest line.
    """

    batch: Batch
    lane: CallerLane
    store: Store
    client: LineClient
    slots: Slots
    max_line_bytes: int

    async def run(self) -> None:
        """Goes on from the batch's status to its end."""
        batch = self.batch
        request_id_var.set(batch.id)
        try:
            await self._go_on()
        except asyncio.CancelledError:
            if batch.status != "cancelling":
                raise  # the server ends
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            await self._end("cancelled")
        except Exception:
            logger.exception("%s failed", batch.id)
            await self._fail("internal_error", "The server failed on this batch; its log has the details.")

    async def _go_on(self) -> None:
        batch = self.batch
        if batch.status == "cancelling":
            await self._end("cancelled")
            return
        try:
            async with asyncio.timeout(max(0.0, batch.wire["expires_at"] - time.time())):
                if batch.status == "validating":
                    async with self.lane.checking:
                        is_good = await self._check()
                    if not is_good:
                        return
                async with self.lane.running:
                    num_missing = await self._do_lines()
        except TimeoutError:
            await self._expire()
            return
        if num_missing:
            await self._fail("input_file_deleted", "The input file was deleted before all lines were done.")
        else:
            await self._end("completed")

    async def _check(self) -> bool:
        """Returns whether all lines can be done."""
        checker = LineChecker(self.batch.wire["endpoint"])
        try:
            async for lines in self._pieces():
                await asyncio.to_thread(checker.check, lines)
                if checker.has_seen_enough:
                    break
        except InvalidRequestError as error:
            checker.add(error.code or "invalid", error.message)
        checker.finish()
        if checker.errors:
            logger.info("%s failed: %s", self.batch.id, checker.errors[0]["message"])
            await self._write([self.batch.fail(checker.errors)])
            return False
        await self._write(self.batch.begin(checker.num_lines))
        return True

    async def _do_lines(self) -> int:
        """Does the lines that have no result; returns how many the file lacks, because it was deleted."""
        done = await self._count_done()
        total = self.batch.counts["total"]
        logger.info("%s: %d of %d lines to do", self.batch.id, total - len(done), total)
        if len(done) == total:
            return 0
        caller = self.lane.caller
        num_seen = 0
        await self.client.engine_ready()  # one waits for it, not each line
        async with self.slots.sharing(caller), asyncio.TaskGroup() as group:
            async for line in self._lines():
                num_seen += 1
                if str(line.number) not in done:
                    await self.lane.has_room.wait()
                    await self.slots.take(caller, len(line.text))
                    group.create_task(self._do_line(line))
        return total - num_seen

    def _pieces(self) -> AsyncIterator[list[Line]]:
        return read_lines(self.store, self.batch.owner, self.batch.wire["input_file_id"], self.max_line_bytes)

    async def _lines(self) -> AsyncIterator[Line]:
        async for lines in self._pieces():
            for line in lines:
                yield line

    async def _count_done(self) -> set[str]:
        """Returns the numbers of the lines that have results, and counts them."""
        batch = self.batch
        output = await self.store.names(batch.owner, batch.output_id, CONTENT)
        errors = await self.store.names(batch.owner, batch.error_id, CONTENT)
        batch.counts["completed"], batch.counts["failed"] = len(output), len(errors)
        return {*output, *errors}

    async def _do_line(self, line: Line) -> None:
        """Has a line answered and stores the result; its slot was taken."""
        caller = self.lane.caller
        request_id = f"{self.batch.id}-{line.number}"
        request_id_var.set(request_id)
        name_task(request_id)
        try:
            if len(line.text) > _LONG_LINE_BYTES:
                custom_id, body = await asyncio.to_thread(_parse, line.text)
            else:
                custom_id, body = _parse(line.text)
            status, reply = await self.client.ask(self.batch.wire["endpoint"], body, caller)
            result = self.batch.result(line.number, custom_id, status, request_id, reply)
            error = await self._try(result)
        finally:
            await self.slots.give_back(caller, len(line.text))
        if error is not None:  # its slot is for callers whose results have room
            self.lane.has_room.clear()
            try:
                await self._write(result)
            finally:
                self.lane.has_room.set()

    async def _expire(self) -> None:
        """Writes errors for the lines that were not done in time, where doing them had begun."""
        if self.batch.status == "in_progress":
            done = await self._count_done()
            left: list[Line] = []
            async for line in self._lines():
                if str(line.number) not in done:
                    left.append(line)
                if len(left) >= _GIVEN_UP_TOGETHER:
                    await self._give_up(left)
                    left = []
            await self._give_up(left)
        await self._end("expired")

    async def _give_up(self, lines: Sequence[Line]) -> None:
        if lines:
            ids = await asyncio.to_thread(lambda: [_parse(line.text)[0] for line in lines])
            await self._write(self.batch.give_up([line.number for line in lines], ids, "batch_expired"))

    async def _end(self, status: str) -> None:
        """Makes files of the results and gives the batch its last status."""
        batch = self.batch
        if status == "completed":
            await self._write([batch.enter("finalizing")])
        sizes = [await self.store.size_of(batch.owner, id, CONTENT) for id in (batch.output_id, batch.error_id)]
        await self._write(batch.end(status, *sizes))
        logger.info("%s %s: %s", batch.id, status, batch.counts)

    async def _fail(self, code: str, message: str) -> None:
        error: BatchError = {"code": code, "line": None, "message": message, "param": None}
        self.batch.wire["errors"] = {"object": "list", "data": [error]}
        await self._end("failed")

    async def _write(self, changes: Sequence[Change]) -> None:
        """Stores what must not be lost; where there is no room now, waits for it."""
        error = await self._try(changes)
        if error is not None:
            logger.warning("a batch waits: %s", error)
        while error is not None:
            await asyncio.sleep(_RETRY_STORE_S)
            error = await self._try(changes)

    async def _try(self, changes: Sequence[Change]) -> StoreError | None:
        """Stores changes; returns the error where that fails now."""
        try:
            await self.store.write(*changes)
        except StoreError as error:
            return error
        return None


def _parse(text: bytes) -> tuple[str, bytes]:
    """Returns the custom id and the body of a line that was checked."""
    request = orjson.loads(text)
    return request["custom_id"], orjson.dumps(request["body"])
