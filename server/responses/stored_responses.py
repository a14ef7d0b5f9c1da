"""Responses and conversations in the store: the object as clients see it, and beside it all of its items.

A response keeps the items of its whole conversation up to its own output, so that a client can go on from it when the
responses before it are deleted. The id of an item says where it is kept.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from model.contract.errors import InvalidRequestError
from server.conversion.readers.responses import MAX_ITEMS, REFERENCE
from server.gates.request_context import body_bytes_var
from server.off_loop import OffLoop
from server.replies.response_items import item_id
from server.store.records import Append, Change, Delete, Entry, Put, StoredObject
from server.store.store import Store
from server.wire.errors import ApiError, dump_json
from server.wire.shapes.conversations import ConversationObject
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.responses import ResponseObject

RESPONSE, CONVERSATION = "response", "conversation"
ITEMS, EVENTS = "items", "events"
_KEEP_S = 30 * 24 * 3600.0
_READ_AT_ONCE = 1024
_HEX_CHARS = 32
MAX_CONVERSATION_BYTES = 8 << 20


def put_response(owner: str, response: ResponseObject) -> Put:
    """Stores a response as it is now; while it is being made in the background it is not dropped for room."""
    is_over = response["status"] not in ("queued", "in_progress")
    stored = StoredObject(
        id=response["id"],
        kind=RESPONSE,
        owner=owner,
        body={**response},
        expires_at=time.time() + _KEEP_S,
        expendable=is_over,
    )
    return Put(stored)


def append_items(id: str, items: Sequence[Mapping[str, Any]]) -> Append:
    """Adds items to a response or a conversation."""
    return Append(id, ITEMS, [dump_json(item) for item in items], [item["id"] for item in items])


def append_events(id: str, events: Sequence[bytes]) -> Append:
    """Keeps the events of a response but its last, which follows from it."""
    return Append(id, EVENTS, [zlib.compress(b"".join(events))])


def with_ids(items: Sequence[JsonObject], hex: str, first: int) -> list[JsonObject]:
    """Gives ids to the items that have none.

    Args:
        hex: the digits in the id of the response or conversation that keeps them.
        first: the first item's number among all that are kept there.
    """
    return [
        item if "id" in item else {"id": item_id(item["type"], hex, number), **item}
        for number, item in enumerate(items, first)
    ]


class StoredResponses:
    """Finds kept responses, conversations and items, for their owners."""

    def __init__(self, store: Store, off_loop: OffLoop) -> None:
        self._store = store
        self._off_loop = off_loop

    async def response(self, owner: str, id: str) -> ResponseObject:
        """Returns a response as it was stored last.

        Raises:
            ApiError: 404, there is no such one of this owner.
        """
        stored = await self._store.get(owner, RESPONSE, id)
        if stored is None:
            raise ApiError(404, f"Response with id '{id[:100]}' not found.", code="response_not_found")
        return cast(ResponseObject, stored.body)

    async def conversation(self, owner: str, id: str) -> ConversationObject:
        """Returns a conversation.

        Raises:
            ApiError: 404, there is no such one of this owner.
        """
        stored = await self._store.get(owner, CONVERSATION, id)
        if stored is None:
            raise ApiError(
                404, f"Conversation with id '{id[:100]}' not found.", code="conversation_not_found",
                param="conversation",
            )  # fmt: skip
        return cast(ConversationObject, stored.body)

    async def after(self, owner: str, response_id: str) -> list[JsonObject]:
        """Returns the items of a conversation up to a response's output.

        Raises:
            InvalidRequestError: there is no such response, or it is still being made.
        """
        stored = await self._store.get(owner, RESPONSE, response_id)
        if stored is None:
            raise InvalidRequestError(
                f"Previous response with id '{response_id[:100]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        if stored.body["status"] in ("queued", "in_progress"):
            raise InvalidRequestError(
                f"Previous response with id '{response_id[:100]}' is still being made; wait until it is over.",
                param="previous_response_id",
            )
        return [*await self.items(owner, response_id), *stored.body["output"]]

    async def items(self, owner: str, id: str) -> list[JsonObject]:
        """Returns all items beside an object; the request they are for counts as large as they are.

        Raises:
            InvalidRequestError: they are too long for a conversation that is gone on with.
        """
        found: list[Entry] = []
        num_bytes = 0
        while entries := await self._store.entries(
            owner, id, ITEMS, limit=_READ_AT_ONCE, after=found[-1].number if found else None
        ):
            found += entries
            num_bytes += sum(len(entry.data) for entry in entries)
            if len(found) > MAX_ITEMS or num_bytes > MAX_CONVERSATION_BYTES:
                raise InvalidRequestError(
                    f"The conversation has more than {MAX_ITEMS} items or {MAX_CONVERSATION_BYTES >> 20} MiB; begin a"
                    " new one."
                )
        body_bytes_var.set(body_bytes_var.get() + num_bytes)
        return await self._off_loop.run(lambda: [orjson.loads(entry.data) for entry in found])

    async def resolved(self, owner: str, items: Sequence[JsonObject]) -> list[JsonObject]:
        """Returns items with those in the place of references that these name.

        Raises:
            ApiError: 404, one is not kept.
            InvalidRequestError: the named items are too long together.
        """
        named: dict[str, tuple[JsonObject, int]] = {}
        read: list[JsonObject] = []
        num_bytes = 0
        for item in items:
            if item["type"] == REFERENCE:
                if item["id"] not in named:
                    named[item["id"]] = await self._item(owner, item["id"])
                item, size = named[item["id"]]
                num_bytes += size
                if num_bytes > MAX_CONVERSATION_BYTES:
                    raise InvalidRequestError(
                        f"The items that are named have more than {MAX_CONVERSATION_BYTES >> 20} MiB; name fewer.",
                        param="input",
                    )
            read.append(item)
        body_bytes_var.set(body_bytes_var.get() + num_bytes)
        return read

    async def _item(self, owner: str, id: str) -> tuple[JsonObject, int]:
        """Returns an item that is named, and how many bytes of JSON it has."""
        hex = id.partition("_")[2][:_HEX_CHARS]
        response = await self._store.get(owner, RESPONSE, f"resp_{hex}")
        found = next((item for item in (response.body["output"] if response else ()) if item["id"] == id), None)
        if found is not None:
            return found, len(dump_json(found))
        for object_id in (f"resp_{hex}", f"conv_{hex}"):
            if (entry := await self._store.entry(owner, object_id, ITEMS, id)) is not None:
                return orjson.loads(entry.data), len(entry.data)
        raise ApiError(
            404,
            f"Item with id '{id[:100]}' not found. Items of responses with 'store': false are not kept.",
            code="item_not_found",
            param="input",
        )

    async def events(self, owner: str, id: str) -> list[bytes] | None:
        """Returns the events of a response but its last, or None where they are not kept."""
        entries = await self._store.entries(owner, id, EVENTS, limit=1)
        if not entries:
            return None
        whole = await asyncio.to_thread(zlib.decompress, entries[0].data)
        return [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]

    async def delete_response(self, owner: str, id: str) -> None:
        """Deletes a response, with all beside it.

        Raises:
            ApiError: 404, there is no such one of this owner.
        """
        await self.response(owner, id)
        await self._store.write(Delete(id))

    async def write(self, *changes: Change) -> None:
        """Makes changes, all or none; they are durable when this returns."""
        await self._store.write(*changes)
