"""The store as the rest of the server sees it: coroutines in front of one thread that owns the database.

Jobs that wait at the same time are committed together, and answered after the commit: whatever was acknowledged is on
disk. Every look-up names the owner, so that an id does not give access to another owner's object.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from model.contract.errors import ConfigError
from server.store.database import open_database, reason
from server.store.errors import StoreError, StoreFullError
from server.store.records import Change, Entry, StoredObject
from server.store.room import Room
from server.store.tables import Tables

logger = logging.getLogger(__name__)

# Most bytes of a list that are read at once: they are all in memory, and other jobs wait meanwhile.
MAX_READ_BYTES = 4 << 20
_MAX_JOBS_TOGETHER = 256

T = TypeVar("T")


class _Job(NamedTuple):
    """Work for the thread; the future gets its result after the commit."""

    work: Callable[[Tables], Any]
    future: Future[Any]


class Store:
    """Objects and their lists; see `records`.

    Args:
        path: the SQLite file, made where there is none; None keeps everything in memory.
        max_bytes: most bytes that are stored, of which one owner may fill half.
    """

    def __init__(self, path: Path | None = None, max_bytes: int = 256 << 20) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._tables: Tables | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Opens the file; `start` does so too, but this can be done before anything listens.

        Raises:
            ConfigError: the file cannot be used.
        """
        if self._connection is None:
            self._connection = open_database(self._path)
            try:
                self._tables = Tables(self._connection, Room(self._connection, self._max_bytes))
            except sqlite3.Error as error:
                self._connection.close()
                raise ConfigError(f"--store {self._path}: {reason(error)}") from error

    def start(self) -> None:
        """Starts the thread.

        Raises:
            ConfigError: the file cannot be used.
        """
        self.open()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finishes the jobs that wait and closes the file; later calls fail. It blocks: not for the event loop."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
        if self._connection is not None:
            self._connection.close()

    async def write(self, *changes: Change) -> None:
        """Makes all changes or none, and returns when they are durable.

        Raises:
            StoreFullError: there is no room for them.
            StoreError: the database fails.
        """
        await self._do(lambda tables: tables.apply(changes))

    async def get(self, owner: str, kind: str, id: str) -> StoredObject | None:
        """Returns an object of an owner; None where there is none."""
        return await self._do(lambda tables: tables.get(owner, kind, id))

    async def page(
        self, owner: str, kind: str, *, limit: int, after: str | None = None, ascending: bool = False
    ) -> list[StoredObject] | None:
        """Returns objects of an owner in the order in which they were first stored, the newest first.

        Args:
            limit: most objects.
            after: id of the object that they follow.
            ascending: the oldest first.

        Returns:
            The objects; None where there is no object `after`.
        """
        return await self._do(lambda tables: tables.page(owner, kind, limit, after, ascending))

    async def all_of(self, kind: str) -> list[StoredObject]:
        """Returns the objects of all owners, the oldest first, to go on with them after a start."""
        return await self._do(lambda tables: tables.all_of(kind))

    async def entries(
        self,
        owner: str,
        id: str,
        list: str,
        *,
        limit: int,
        after: int | None = None,
        ascending: bool = True,
        max_bytes: int = MAX_READ_BYTES,
    ) -> list[Entry]:
        """Returns entries of a list in their order; none where the object is not this owner's.

        Args:
            limit: most entries.
            after: number of the entry that they follow in that order.
            ascending: the first entry first, else the last.
            max_bytes: reading ends with the entry that exceeds this; ask again for the rest.
        """
        return await self._do(lambda tables: tables.entries(owner, id, list, limit, after, ascending, max_bytes))

    async def entry(self, owner: str, id: str, list: str, name: str) -> Entry | None:
        """Returns the first entry of a name; None where there is none."""
        return await self._do(lambda tables: tables.entry(owner, id, list, name))

    async def names(self, owner: str, id: str, list: str) -> list[str]:
        """Returns the names of all entries of a list, in their order."""
        return await self._do(lambda tables: tables.names(owner, id, list))

    async def size_of(self, owner: str, id: str, list: str) -> tuple[int, int]:
        """Returns the number of entries of a list, and the sum of their bytes."""
        return await self._do(lambda tables: tables.size_of(owner, id, list))

    async def _do(self, work: Callable[[Tables], T]) -> T:
        if self._thread is None or not self._thread.is_alive():
            raise StoreError("The store is closed: the server is starting or shutting down.")
        future: Future[T] = Future()
        self._jobs.put(_Job(work, future))
        return await asyncio.wrap_future(future)

    def _serve(self) -> None:
        """Does jobs on the thread, until `close`."""
        assert self._tables is not None
        while True:
            job = self._jobs.get()
            jobs = []
            while job is not None:
                if job.future.set_running_or_notify_cancel():
                    jobs.append(job)
                if len(jobs) >= _MAX_JOBS_TOGETHER:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if jobs:
                self._do_together(self._tables, jobs)
            if job is None:
                break
        self._refuse_rest()

    def _refuse_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    job.future.set_exception(StoreError("The store is closed: the server is shutting down."))

    def _do_together(self, tables: Tables, jobs: list[_Job]) -> None:
        """Does jobs in one transaction: one that fails is rolled back alone; if the commit fails, all of them fail."""
        outcomes: list[tuple[Any, Exception | None]] = []
        failure: Exception | None = None
        try:
            with tables.transaction():
                for job in jobs:
                    try:
                        with tables.savepoint():
                            outcomes.append((job.work(tables), None))
                    except (sqlite3.Error, MemoryError):
                        raise
                    except Exception as error:
                        if not isinstance(error, StoreError):
                            logger.exception("the store failed")
                        outcomes.append((None, error))
        except Exception as error:
            failure = self._explain(error)
        for job, (result, refusal) in zip(jobs, [(None, failure)] * len(jobs) if failure else outcomes, strict=True):
            if refusal is not None:
                job.future.set_exception(refusal)
            else:
                job.future.set_result(result)

    def _explain(self, error: Exception) -> Exception:
        """Logs an error of the database and returns the one for those whose work was lost."""
        logger.error("the store (%s) failed: %s", self._path or "in memory", reason(error))
        if isinstance(error, MemoryError) or "full" in str(error):
            return StoreFullError("The server has no room to store this: its disk is full.")
        return StoreError("The server could not read or write what it stores; its log has the reason.")
