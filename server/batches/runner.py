"""The batches that are not over: taken in, carried on by a task each, cancelled; also those that a start finds stored.

Of one caller, one batch is checked and one is done at a time, in their order.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import FastAPI

from server.batches.batch import BATCH, TERMINAL, Batch
from server.batches.job import BatchJob, CallerLane
from server.batches.line_request import LineClient
from server.batches.slots import Slots
from server.engine.client import EngineClient
from server.gates.callers import Caller
from server.gates.credentials import Credentials
from server.store.store import Store
from server.wire.errors import ApiError
from server.wire.shapes.files import BatchRequest

logger = logging.getLogger(__name__)

MAX_ACTIVE = 100


class BatchRunner:
    """All batches that are not over.

    Args:
        app: answers their lines.
        credentials: the keys that are still valid, with their weights.
        num_slots: lines in the engine at a time.
        max_line_bytes: longest line.
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
        self._lanes: dict[str, CallerLane] = {}
        self._tasks: dict[str, tuple[Batch, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Goes on with what the last server left."""
        for stored in await self._store.all_of(BATCH):
            try:
                batch = Batch(stored)
                is_over = batch.status in TERMINAL
            except (KeyError, TypeError) as error:
                logger.error("%s is damaged in the store, and is left alone: it has no %s", stored.id, error)
                continue
            if is_over:
                continue
            if self._credentials.required and not self._credentials.knows(batch.owner):
                logger.warning("%s waits: its key is not valid any more", batch.id)
                continue
            self._spawn(batch)

    async def stop(self) -> None:
        """Ends the tasks; the batches stay as they are stored."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(self, request: BatchRequest, owner: str) -> Batch:
        """Stores a new batch and begins with it.

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
            task.cancel()  # before anything is awaited: the task must not end the batch meanwhile
            await self._store.write(change)
        return batch

    def _spawn(self, batch: Batch) -> None:
        owner = batch.owner
        if owner not in self._lanes:
            caller = Caller(owner, self._credentials.weight_of(owner), has_key=bool(owner))
            self._lanes[owner] = CallerLane(caller=caller)
        job = BatchJob(batch, self._lanes[owner], self._store, self._client, self._slots, self._max_line_bytes)
        task = asyncio.create_task(job.run(), name=batch.id)
        self._tasks[batch.id] = (batch, task)
        task.add_done_callback(lambda _: self._forget(batch))

    def _forget(self, batch: Batch) -> None:
        del self._tasks[batch.id]
        if all(other.owner != batch.owner for other, _ in self._tasks.values()):
            self._lanes.pop(batch.owner, None)
