"""Stored objects, and the changes that a transaction consists of.

An object is one row of JSON that belongs to the caller who made it. It has lists of entries of bytes, numbered from 0:
the pieces of a file, the lines of a batch, the events of a stream, the items of a conversation. They are deleted with
it.
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
        kind: such as "file"; an object is found under its kind only.
        owner: name of the key that made it; empty where no key is asked for.
        body: JSON.
        expires_at: Unix time from which nobody finds it, or None.
        expendable: it may be dropped to make room, the oldest first.
    """

    id: str
    kind: str
    owner: str
    body: dict[str, Any]
    expires_at: float | None = None
    expendable: bool = False


class Entry(NamedTuple):
    """An entry of a list.

    Attributes:
        number: place in the list, from 0; deleted entries leave gaps.
        name: name that it is found by, or empty.
    """

    number: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Stores an object, or replaces the one of its id, whose lists stay."""

    object: StoredObject


@dataclass(frozen=True, slots=True)
class Append:
    """Adds entries to the end of an object's list; does nothing where the object is gone.

    Attributes:
        names: a name for each entry, or none at all.
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
    """Removes the entries of a name from a list, or without a name all entries."""

    id: str
    list: str
    name: str | None = None


Change = Put | Append | Delete | DeleteEntries
