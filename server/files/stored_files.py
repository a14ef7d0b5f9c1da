"""Files in the store: an object with the file's metadata, and its pieces in a list.

While a file comes in, or a batch writes it, its object is of another kind, so that nobody finds it; the last change
makes it a file.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from server.gates.callers import Caller, CallerCounts
from server.store.records import Append, Delete, Put, StoredObject
from server.store.store import Store
from server.wire.errors import ApiError, server_overloaded
from server.wire.shapes.files import FileObject

FILE = "file"
UPLOAD = "upload"
CONTENT = "content"
MAX_FILE_BYTES = 512 << 20
PIECE_BYTES = 1 << 20
_MAX_UPLOADS = 16
_RETRY_AFTER_S = 5


def new_file_id() -> str:
    """Returns an id that cannot be guessed."""
    return f"file-{uuid.uuid4().hex}"


def file_object(
    id: str, owner: str, filename: str, purpose: str, num_bytes: int, expires_after_s: int | None = None
) -> StoredObject:
    """Returns the object of a file whose content is stored."""
    created = int(time.time())
    expires_at = None if expires_after_s is None else created + expires_after_s
    wire: FileObject = {
        "id": id,
        "object": "file",
        "bytes": num_bytes,
        "created_at": created,
        "expires_at": expires_at,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }
    return StoredObject(id=id, kind=FILE, owner=owner, body={**wire}, expires_at=expires_at)


async def content_of(store: Store, owner: str, id: str) -> AsyncIterator[bytes]:
    """Yields the pieces of a file; the last ones are missing where it is deleted meanwhile."""
    after = None
    while entries := await store.entries(owner, id, CONTENT, limit=1024, after=after, max_bytes=PIECE_BYTES):
        after = entries[-1].number
        yield b"".join(entry.data for entry in entries)


class Uploads:
    """Files that are coming in."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open = CallerCounts()

    async def discard_unfinished(self) -> None:
        """Removes files that were coming in when the last server ended."""
        for upload in await self._store.all_of(UPLOAD):
            await self._store.write(Delete(upload.id))

    @contextmanager
    def reserve(self, caller: Caller) -> Iterator[None]:
        """Holds one of the places for uploads, which callers share.

        Raises:
            ApiError: 429, all are taken, and the caller has its share of them.
        """
        if not self._open.may_have_more(caller, _MAX_UPLOADS):
            raise server_overloaded(
                "Too many files are being sent; please try again later.", retry_after_s=_RETRY_AFTER_S
            )
        with self._open.one_more(caller):
            yield

    async def begin(self, owner: str) -> str:
        """Returns the id of a new upload.

        Raises:
            StoreError: it could not be stored.
        """
        id = new_file_id()
        await self._store.write(Put(StoredObject(id=id, kind=UPLOAD, owner=owner, body={})))
        return id

    async def add(self, id: str, piece: bytes, num_before: int) -> None:
        """Stores the next piece.

        Args:
            num_before: bytes stored so far.

        Raises:
            ApiError: 413, the file is too large.
            StoreError: there is no room.
        """
        if num_before + len(piece) > MAX_FILE_BYTES:
            raise ApiError(413, f"A file has at most {MAX_FILE_BYTES} bytes.", code="request_too_large", param="file")
        await self._store.write(Append(id, CONTENT, [piece]))

    async def finish(self, file: StoredObject) -> None:
        """Makes an upload a file."""
        await self._store.write(Put(file))

    async def discard(self, id: str) -> None:
        """Removes an upload that will not be complete."""
        await self._store.write(Delete(id))
