"""Opens the SQLite file of `--store`, and refuses in one sentence any other file.

The file is locked while it is open, so that two servers cannot work on the same batches; the lock ends with the
process, however that ends.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

from model.contract.errors import ConfigError

# "qwen", and the version of the tables below.
APPLICATION_ID = 0x7177656E
SCHEMA_VERSION = 1

SCHEMA = (
    "CREATE TABLE objects (key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,"
    " owner TEXT NOT NULL, expires_at REAL, expendable INTEGER NOT NULL, num_bytes INTEGER NOT NULL,"
    " body BLOB NOT NULL)",
    "CREATE INDEX objects_by_owner ON objects (owner, kind, key)",
    "CREATE INDEX objects_by_expiry ON objects (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE INDEX objects_to_drop ON objects (owner, key) WHERE expendable",
    "CREATE TABLE entries (object INTEGER NOT NULL REFERENCES objects (key) ON DELETE CASCADE, list TEXT NOT NULL,"
    " number INTEGER NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (object, list, number))",
    "CREATE INDEX entries_by_name ON entries (object, list, name) WHERE name <> ''",
)
_LOCK_TIMEOUT_S = 5.0


def open_database(path: Path | None) -> sqlite3.Connection:
    """Returns a connection, in autocommit mode, that any one thread at a time may use.

    Args:
        path: the file, which is made where there is none; None keeps everything in memory.

    Raises:
        ConfigError: the file cannot be used.
    """
    if path is None:
        connection = _connect(":memory:")
        _prepare(connection)
        return connection
    try:
        _require_plain_file(path)
        connection = _connect(str(path))
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA trusted_schema = OFF")  # a stranger's file runs nothing of its own
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a loss of power
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error, ConfigError) as error:
        raise ConfigError(f"--store {path}: {reason(error)}") from error
    return connection


def reason(error: BaseException) -> str:
    """Returns in one sentence why the database failed."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}."
    text = str(error)
    if "locked" in text:
        return "another process has it open; give each server a file of its own, or stop the other one."
    if "full" in text:
        return "the disk is full; make room on it."
    if "readonly" in text:
        return "it may not be written to; give the server's user the right to, also to its folder."
    if "unable to open" in text:
        return "it cannot be opened or made; its folder must exist and be the server's to write to."
    if "not a database" in text or "malformed" in text:
        return "it is damaged, or was not made by this server; move it away, and a new one is made."
    return f"{text}."


def _require_plain_file(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}; make it first.")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # only its owner may read what was said to the model
        return
    if not stat.S_ISREG(mode):
        raise ConfigError("it is no plain file; name one, which is made if it does not exist.")


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables, or checks that they are those that would be made.

    Raises:
        ConfigError: the file is another program's, or of a newer format.
        sqlite3.Error: it is broken.
    """
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("BEGIN IMMEDIATE")
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
        found.discard("CREATE TABLE sqlite_sequence(name,seq)")
        if not found and not application_id:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif application_id != APPLICATION_ID:
            raise ConfigError("it is the database of another program; name a file of its own.")
        elif version > SCHEMA_VERSION:
            raise ConfigError(
                f"a newer qwen-server made it (format {version}, this one knows {SCHEMA_VERSION}); use that one, or"
                " another file."
            )
        elif found != set(SCHEMA):
            raise ConfigError("its tables are not those this server makes; move it away, and a new one is made.")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
