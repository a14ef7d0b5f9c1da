"""The store: acknowledged changes are durable, a key cannot find the objects of another, and its size is bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from model.contract.errors import ConfigError
from server.run_module import module_command
from server.store.database import SCHEMA_VERSION
from server.store.errors import StoreError, StoreFullError
from server.store.records import Append, Delete, DeleteEntries, Put, StoredObject
from server.store.room import ROW_BYTES
from server.store.store import Store
from tests.support.paths import ROOT


def thing(id: str, owner: str = "ann", kind: str = "thing", text: str = "", **more: object) -> StoredObject:
    return StoredObject(id=id, kind=kind, owner=owner, body={"text": text}, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def started(path: Path | None = None, max_bytes: int = 1 << 20) -> AsyncIterator[Store]:
    store = Store(path, max_bytes)
    store.start()
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with started(None if request.param == "memory" else tmp_path / "s.db") as opened:
        yield opened


async def test_objects_are_found_by_their_owner_and_kind_only(store: Store) -> None:
    await store.write(Put(thing("a", text="1 \ud800")), Put(thing("b", owner="bob")))
    found = await store.get("ann", "thing", "a")
    assert found is not None and found.body == {"text": "1 \ud800"}
    for owner, kind, id in (
        ("bob", "thing", "a"),
        ("ann", "other", "a"),
        ("ann", "thing", "a\ud800"),
        ("", "thing", "a"),
    ):
        assert await store.get(owner, kind, id) is None
    await store.write(Put(thing("a", kind="other", text="2")))
    assert await store.get("ann", "thing", "a") is None
    assert (await store.get("ann", "other", "a")).body == {"text": "2"}  # type: ignore[union-attr]
    with pytest.raises(StoreError):
        await store.write(Put(thing("b")))
    assert [found.id for found in await store.all_of("thing")] == ["b"]
    await store.write(Delete("a"), Delete("never"))
    assert await store.get("ann", "other", "a") is None


async def test_pages_follow_each_other_in_both_directions(store: Store) -> None:
    await store.write(*(Put(thing(str(n), owner="ann" if n % 2 else "bob")) for n in range(10)))
    ids = []
    after = None
    while page := await store.page("ann", "thing", limit=2, after=after):
        ids += [found.id for found in page]
        after = ids[-1]
    assert ids == ["9", "7", "5", "3", "1"]
    up = await store.page("ann", "thing", limit=2, after="3", ascending=True)
    assert up is not None and [found.id for found in up] == ["5", "7"]
    assert await store.page("ann", "thing", limit=2, after="2") is None  # somebody else's


async def test_lists_keep_their_order_and_go_with_their_object(store: Store) -> None:
    await store.write(Put(thing("a")), Append("a", "lines", [b"0", b"1"], ["x", "y"]), Append("gone", "lines", [b"-"]))
    await store.write(Append("a", "lines", [b"2"]), Append("a", "others", [b"z"]))
    assert [tuple(entry) for entry in await store.entries("ann", "a", "lines", limit=9)] == [
        (0, "x", b"0"), (1, "y", b"1"), (2, "", b"2"),
    ]  # fmt: skip
    assert [e.number for e in await store.entries("ann", "a", "lines", limit=1, after=2, ascending=False)] == [1]
    assert [e.number for e in await store.entries("ann", "a", "lines", limit=9, after=0, max_bytes=0)] == [1]
    assert await store.entries("bob", "a", "lines", limit=9) == []
    assert await store.entry("bob", "a", "lines", "y") is None
    assert await store.entry("ann", "a", "lines", "y") == (1, "y", b"1")
    await store.write(DeleteEntries("a", "lines", "y"))
    assert await store.names("ann", "a", "lines") == ["x", ""]
    await store.write(DeleteEntries("a", "lines"))
    assert await store.names("ann", "a", "lines") == []
    await store.write(Delete("a"), Put(thing("a")))
    assert await store.entries("ann", "a", "others", limit=9) == []


async def test_changes_of_one_write_are_made_together_or_not_at_all(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.write(Put(thing("a")), Put(thing("b")), Put(thing("b", owner="bob")))
    outcomes = await asyncio.gather(
        store.write(Put(thing("c"))), store.write(Put(thing("c", owner="bob"))), store.write(Put(thing("d"))),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(outcome) for outcome in outcomes] == [type(None), StoreError, type(None)]
    assert [found.id for found in await store.all_of("thing")] == ["c", "d"]


async def test_what_is_expendable_makes_room_and_nothing_else_does() -> None:
    async with started(max_bytes=100_000) as store:
        for n in range(40):
            await store.write(Put(thing(f"r{n}", kind="reply", text="x" * 4000, expendable=True)))
        kept = await store.all_of("reply")
        assert [found.id for found in kept] == [f"r{n}" for n in range(40 - len(kept), 40)] and len(kept) >= 10
        await store.write(Put(thing("f", kind="file")), Append("f", "content", [b"x" * 40_000]))
        assert len(await store.all_of("reply")) == 2  # half is one owner's
        with pytest.raises(StoreFullError, match="--max-store-bytes"):
            await store.write(Append("f", "content", [b"x" * 10_000]))
        assert len(await store.all_of("reply")) == 2, "what was dropped in vain is back"
        await store.write(Put(thing("g", "bob", "file")), Append("g", "content", [b"x" * 49_000]))
        await store.write(Put(thing("h", "cid", "file")), Append("h", "content", [b"x" * 9_000]))
        assert [found.id for found in await store.all_of("reply")] == [], "the greatest holder's went first"
        with pytest.raises(StoreFullError, match="the store is full"):
            await store.write(Append("h", "content", [b"x" * 9_000]))
        await store.write(Delete("g"))
        await store.write(Append("h", "content", [b"x" * 9_000]))


async def test_tiny_rows_count_too() -> None:
    async with started(max_bytes=100 * ROW_BYTES) as store:
        await store.write(Put(thing("a")))
        with pytest.raises(StoreFullError):
            await store.write(Append("a", "list", [b""] * 50))


async def test_what_has_expired_is_not_found_and_leaves(tmp_path: Path) -> None:
    async with started(tmp_path / "s.db") as store:
        await store.write(Put(thing("a", expires_at=1.0)), Put(thing("b", expires_at=9e9)))
        assert await store.get("ann", "thing", "a") is None
        assert [found.id for found in await store.page("ann", "thing", limit=9) or ()] == ["b"]
    async with started(tmp_path / "s.db") as store:
        await store.write(Put(thing("c")))
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert connection.execute("SELECT id FROM objects").fetchall() == [("b",), ("c",)]


async def test_a_store_that_is_closed_says_so() -> None:
    store = Store()
    with pytest.raises(StoreError, match="closed"):
        await store.get("", "thing", "a")
    async with started() as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.write(Put(thing("a")))


WRITER = """
import asyncio, sys
from pathlib import Path
from server.store.records import Append, Put, StoredObject
from server.store.store import Store

async def main():
    store = Store(Path(sys.argv[1]))
    store.start()
    await store.write(Put(StoredObject(id="a", kind="thing", owner="", body={})))
    async def write(writer):
        for n in range(10_000):
            await store.write(Append("a", writer, [str(n).encode()]))
            sys.stdout.write(f"{writer} {n}\\n")
            sys.stdout.flush()
    await asyncio.gather(*map(write, "xyz"))

asyncio.run(main())
"""


async def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    python = module_command("x")[0]
    with subprocess.Popen([python, str(script), str(path)], stdout=subprocess.PIPE, text=True, env=environ) as writer:
        assert writer.stdout is not None
        acknowledged = {}
        for _ in range(100):
            name, number = writer.stdout.readline().split()
            acknowledged[name] = int(number)
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            name, _, number = line.partition(" ")
            if number.endswith("\n"):
                acknowledged[name] = int(number)
    async with started(path) as store:
        for name, last in acknowledged.items():
            entries = await store.entries("", "a", name, limit=20_000)
            assert [int(entry.data) for entry in entries] == list(range(len(entries))) and len(entries) > last


async def test_one_file_is_of_one_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.database._LOCK_TIMEOUT_S", 0.0)
    async with started(tmp_path / "s.db") as store:
        await store.write(Put(thing("a")))
        with pytest.raises(ConfigError, match=r"another process has it open"):
            Store(tmp_path / "s.db").open()
    assert (tmp_path / "s.db").stat().st_mode & 0o077 == 0


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def _ours(path: Path, *statements: str) -> None:
    store = Store(path)
    store.start()
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"hello, I am no database at all" * 99), "is damaged, or was not made by this"),
        (lambda path: path.mkdir(), "no plain file"),
        (os.mkfifo, "no plain file"),
        (_foreign, "another program"),
        (lambda path: _ours(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"), "a newer qwen-server"),
        (
            lambda path: _ours(path, "CREATE TRIGGER t AFTER INSERT ON objects BEGIN DELETE FROM objects; END"),
            "its tables are not those",
        ),
        (lambda path: _ours(path, "DROP INDEX objects_by_expiry"), "its tables are not those"),
    ],
    ids=["text", "folder", "fifo", "foreign", "newer", "trigger", "changed"],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, make: object, says: str) -> None:
    path = tmp_path / "s.db"
    make(path)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=says) as failure:
        Store(path).open()
    assert str(failure.value).startswith(f"--store {path}: ") and "\n" not in str(failure.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        Store(tmp_path / "none" / "s.db").open()


def test_a_truncated_file_is_refused_or_reads_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    _ours(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ConfigError, match="damaged"):
        Store(path).open()


async def test_rows_that_a_stranger_wrote_are_errors_not_crashes(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    insert = "INSERT INTO objects (id, kind, owner, expendable, num_bytes, body) VALUES"
    _ours(path, f"{insert} ('a', 'thing', 'ann', 0, 9, 'no json')", f"{insert} ('b', 'thing', 'ann', 0, 'many', 7)")
    async with started(path) as store:
        for id in "ab":
            with pytest.raises(StoreError, match="damaged"):
                await store.get("ann", "thing", id)
        await store.write(Delete("a"), Delete("b"), Put(thing("c")))
        assert [found.id for found in await store.all_of("thing")] == ["c"]


async def test_a_full_disk_is_told_and_the_store_goes_on(tmp_path: Path) -> None:
    async with started(tmp_path / "s.db", max_bytes=1 << 30) as store:
        await store.write(Put(thing("a")))
        # SQLite's own bound on a file fails in the way a full disk does.
        await store._do(lambda tables: tables._connection.execute("PRAGMA max_page_count = 30").fetchall())
        with pytest.raises(StoreFullError, match="disk is full"):
            await store.write(Append("a", "list", [b"x" * 1_000_000]))
        await store.write(Put(thing("b")))
        assert [found.id for found in await store.all_of("thing")] == ["a", "b"]
