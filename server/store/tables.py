"""Reads and changes the tables of the store; used on its thread only."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from server.store.errors import StoreError
from server.store.records import Append, Change, Delete, DeleteEntries, Entry, Put, StoredObject
from server.store.room import NUM_BYTES, ROW_BYTES, Room

logger = logging.getLogger(__name__)

_OBJECT = "id, kind, owner, body, expires_at, expendable"
_IS_ALIVE = "(expires_at IS NULL OR expires_at > ?)"
_SWEEP_INTERVAL_S = 60.0


class Tables:
    """The two tables."""

    def __init__(self, connection: sqlite3.Connection, room: Room) -> None:
        self._connection = connection
        self._room = room
        self._swept_at = float("-inf")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits what is done within, or rolls it back."""
        with self._rolling_back("BEGIN", "COMMIT", "ROLLBACK"):
            yield

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Rolls back what is done within where it fails.

        Raises:
            sqlite3.Error: the database fails, and the whole transaction is lost.
        """
        with self._rolling_back("SAVEPOINT job", "RELEASE job", "ROLLBACK TO job; RELEASE job"):
            yield

    @contextmanager
    def _rolling_back(self, begin: str, end: str, undo: str) -> Iterator[None]:
        held = self._room.snapshot()
        self._connection.execute(begin)
        try:
            yield
            self._connection.execute(end)
        except BaseException:
            self._room.restore(held)
            if self._connection.in_transaction:  # some failures end it by themselves
                for statement in undo.split("; "):
                    self._connection.execute(statement)
            raise

    def apply(self, changes: Sequence[Change]) -> None:
        """Makes changes in their order.

        Raises:
            StoreError: an object is somebody else's, or there is no room.
        """
        if time.monotonic() - self._swept_at > _SWEEP_INTERVAL_S:
            self._swept_at = time.monotonic()
            self._delete("expires_at <= ?", (time.time(),))
        for change in changes:
            match change:
                case Put():
                    self._put(change.object)
                case Append():
                    self._append(change)
                case Delete():
                    self._delete("id = ?", (change.id,))
                case DeleteEntries():
                    self._delete_entries(change)

    def _put(self, new: StoredObject) -> None:
        body = _dump(new.body)
        row = self._connection.execute(
            "SELECT key, owner, length(body) FROM objects WHERE id = ?", (new.id,)
        ).fetchone()
        if row is None:
            num_bytes = len(body) + ROW_BYTES
            self._room.take(new.owner, num_bytes)
            self._connection.execute(
                "INSERT INTO objects (id, kind, owner, expires_at, expendable, num_bytes, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (new.id, new.kind, new.owner, new.expires_at, new.expendable, num_bytes, body),
            )
            return
        key, owner, num_before = row
        if owner != new.owner:
            raise StoreError("The object belongs to somebody else.")
        more = len(body) - num_before
        self._room.take(owner, more, key=key)
        self._connection.execute(
            "UPDATE objects SET kind = ?, expires_at = ?, expendable = ?, num_bytes = num_bytes + ?, body = ?"
            " WHERE key = ?",
            (new.kind, new.expires_at, new.expendable, more, body, key),
        )

    def _append(self, change: Append) -> None:
        row = self._connection.execute("SELECT key, owner FROM objects WHERE id = ?", (change.id,)).fetchone()
        if row is None:
            return
        key, owner = row
        names = change.names or [""] * len(change.data)
        num_bytes = sum(len(data) + ROW_BYTES for data in change.data)
        self._room.take(owner, num_bytes, key=key)
        (first,) = self._connection.execute(
            "SELECT COALESCE(MAX(number) + 1, 0) FROM entries WHERE object = ? AND list = ?", (key, change.list)
        ).fetchone()
        self._connection.executemany(
            "INSERT INTO entries (object, list, number, name, data) VALUES (?, ?, ?, ?, ?)",
            [
                (key, change.list, number, name, data)
                for number, (name, data) in enumerate(zip(names, change.data, strict=True), first)
            ],
        )
        self._connection.execute("UPDATE objects SET num_bytes = num_bytes + ? WHERE key = ?", (num_bytes, key))

    def _delete(self, where: str, values: tuple[Any, ...]) -> None:
        rows = self._connection.execute(f"SELECT key, owner, {NUM_BYTES} FROM objects WHERE {where}", values).fetchall()
        for key, owner, num_bytes in rows:
            self._connection.execute("DELETE FROM objects WHERE key = ?", (key,))
            self._room.take(owner, -num_bytes)

    def _delete_entries(self, change: DeleteEntries) -> None:
        row = self._connection.execute("SELECT key, owner FROM objects WHERE id = ?", (change.id,)).fetchone()
        if row is None:
            return
        key, owner = row
        where, values = "object = ? AND list = ?", [key, change.list]
        if change.name is not None:
            where, values = where + " AND name = ?", [*values, change.name]
        (num_bytes,) = self._connection.execute(
            f"SELECT COALESCE(SUM(length(data) + {ROW_BYTES}), 0) FROM entries WHERE {where}", values
        ).fetchone()
        self._connection.execute(f"DELETE FROM entries WHERE {where}", values)
        self._connection.execute("UPDATE objects SET num_bytes = num_bytes - ? WHERE key = ?", (num_bytes, key))
        self._room.take(owner, -num_bytes)

    def get(self, owner: str, kind: str, id: str) -> StoredObject | None:
        """As `Store.get`."""
        row = self._connection.execute(
            f"SELECT {_OBJECT} FROM objects WHERE id = ? AND owner = ? AND kind = ? AND {_IS_ALIVE}",
            (_plain(id), owner, kind, time.time()),
        ).fetchone()
        return None if row is None else _object(row)

    def page(self, owner: str, kind: str, limit: int, after: str | None, ascending: bool) -> list[StoredObject] | None:
        """As `Store.page`."""
        where, values = f"owner = ? AND kind = ? AND {_IS_ALIVE}", [owner, kind, time.time()]
        if after is not None:
            row = self._connection.execute(
                "SELECT key FROM objects WHERE id = ? AND owner = ? AND kind = ?", (_plain(after), owner, kind)
            ).fetchone()
            if row is None:
                return None
            where, values = f"{where} AND key {'>' if ascending else '<'} ?", [*values, row[0]]
        order = "ASC" if ascending else "DESC"
        rows = self._connection.execute(
            f"SELECT {_OBJECT} FROM objects WHERE {where} ORDER BY key {order} LIMIT ?", [*values, limit]
        )
        return [_object(row) for row in rows]

    def all_of(self, kind: str) -> list[StoredObject]:
        """As `Store.all_of`."""
        rows = self._connection.execute(
            f"SELECT {_OBJECT} FROM objects WHERE kind = ? AND {_IS_ALIVE} ORDER BY key", (kind, time.time())
        )
        found = []
        for row in rows:
            try:
                found.append(_object(row))
            except StoreError:
                logger.error("%r is damaged in the store, and is left alone", row[0])
        return found

    def entries(
        self, owner: str, id: str, list: str, limit: int, after: int | None, ascending: bool, max_bytes: int
    ) -> list[Entry]:
        """As `Store.entries`."""
        where, values = "object = (SELECT key FROM objects WHERE id = ? AND owner = ?) AND list = ?", [id, owner, list]
        if after is not None:
            where, values = f"{where} AND number {'>' if ascending else '<'} ?", [*values, after]  # type: ignore[list-item]
        order = "ASC" if ascending else "DESC"
        found, num_bytes = [], 0
        for row in self._connection.execute(
            f"SELECT number, name, data FROM entries WHERE {where} ORDER BY number {order} LIMIT ?", [*values, limit]
        ):
            found.append(Entry._make(row))
            num_bytes += len(row[2])
            if num_bytes > max_bytes:
                break
        return found

    def entry(self, owner: str, id: str, list: str, name: str) -> Entry | None:
        """As `Store.entry`."""
        row = self._connection.execute(
            "SELECT number, name, data FROM entries WHERE object = (SELECT key FROM objects WHERE id = ? AND owner = ?)"
            " AND list = ? AND name = ? AND name <> '' ORDER BY number LIMIT 1",
            (id, owner, list, _plain(name)),
        ).fetchone()
        return None if row is None else Entry._make(row)

    def names(self, owner: str, id: str, list: str) -> list[str]:
        """As `Store.names`."""
        rows = self._connection.execute(
            "SELECT name FROM entries WHERE object = (SELECT key FROM objects WHERE id = ? AND owner = ?)"
            " AND list = ? ORDER BY number",
            (id, owner, list),
        )
        return [name for (name,) in rows]

    def size_of(self, owner: str, id: str, list: str) -> tuple[int, int]:
        """As `Store.size_of`."""
        num_entries, num_bytes = self._connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(length(data)), 0) FROM entries"
            " WHERE object = (SELECT key FROM objects WHERE id = ? AND owner = ?) AND list = ?",
            (id, owner, list),
        ).fetchone()
        return num_entries, num_bytes


def _object(row: tuple[Any, ...]) -> StoredObject:
    id, kind, owner, body, expires_at, expendable = row
    return StoredObject(
        id=id, kind=kind, owner=owner, body=_load(body), expires_at=expires_at, expendable=bool(expendable)
    )


def _plain(text: str) -> str:
    """Replaces lone surrogates in a client's text, which SQLite does not take."""
    return text.encode("utf-8", errors="replace").decode()


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # lone surrogates
        return json.dumps(body).encode()


def _load(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(body)
        except (ValueError, TypeError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise StoreError("What was stored here is damaged.")
    return value
