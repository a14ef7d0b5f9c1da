"""What is stored, and the changes that a transaction is made of.

An object is one row of JSON that belongs to whoever made it. Beside it lie lists of bytes, numbered from 0: the pieces
of a file, the lines of a batch, the events of a stream, the items of a conversation. They go when it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One row.

    Attributes:
        id: unique in the store.
        kind: such as "file"; an id is found under its kind only.
        owner: the name of the key that made it; empty where no key is asked for.
        body: JSON.
        expires_at: Unix time from which nobody finds it, or None.
        expendable: it may be dropped, the oldest first, where room is needed.
    """

    id: str
    kind: str
    owner: str
    body: dict[str, Any]
    expires_at: float | None = None
    expendable: bool = False


class Entry(NamedTuple):
    """One of a list.

    Attributes:
        number: in its list, from 0; those of deleted ones stay free.
        name: by which it is found, or empty.
        data: its bytes.
    """

    number: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Stores an object, or in its place what it is now; its lists stay."""

    object: StoredObject


@dataclass(frozen=True, slots=True)
class Append:
    """Adds to the end of a list of an object that is there; where it has gone, to nothing.

    Attributes:
        data: of each entry.
        names: of each, or nothing.
    """

    id: str
    list: str
    data: Sequence[bytes]
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes an object and its lists."""

    id: str


@dataclass(frozen=True, slots=True)
class DeleteEntries:
    """Removes the entries of a name from a list, or with no name all of it."""

    id: str
    list: str
    name: str | None = None


Change = Put | Append | Delete | DeleteEntries
