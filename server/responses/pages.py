"""Pages of items, as they lie in the store: no more than the page is read, and nothing is parsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import orjson

from server.responses.stored_responses import ITEMS
from server.store.store import MAX_READ_BYTES, Store
from server.wire.errors import ApiError, dump_json
from server.wire.shapes.pages import page_ends


def page_of(ids: Sequence[str], items: Sequence[bytes], *, has_more: bool) -> bytes:
    """Returns a page of a list: items, each of them JSON already, with their ids."""
    data = [orjson.Fragment(item) for item in items]
    return dump_json({"object": "list", "data": data, **page_ends(ids, has_more=has_more)})


async def read_page(
    store: Store,
    owner: str,
    id: str,
    *,
    limit: int,
    order: Literal["asc", "desc"],
    after: str | None = None,
    before: str | None = None,
) -> bytes:
    """Returns a page of the items of a response or a conversation, cut short where they are many bytes.

    Args:
        limit: the most items.
        order: "asc", or "desc" with the newest first.
        after: the id of the item before the page.
        before: the id of the item behind the page.

    Raises:
        ApiError: there is no such item.
    """

    async def number_of(param: str, item_id: str | None) -> int | None:
        if item_id is None:
            return None
        entry = await store.entry(owner, id, ITEMS, item_id)
        if entry is None:
            raise ApiError(400, f"'{param}' names the item {item_id[:100]!r}, which is not in the list.", param=param)
        return entry.number

    start, end = await number_of("after", after), await number_of("before", before)
    is_ascending = order == "asc"
    found = await store.entries(owner, id, ITEMS, limit=limit + 1, after=start, ascending=is_ascending)
    is_cut = sum(len(entry.data) for entry in found) > MAX_READ_BYTES
    if is_cut and len(found) <= limit:
        limit = len(found)
        found += await store.entries(owner, id, ITEMS, limit=1, after=found[-1].number, ascending=is_ascending)
    if end is not None:
        found = [entry for entry in found if (entry.number < end) == is_ascending and entry.number != end]
    page = found[:limit]
    return page_of([entry.name for entry in page], [entry.data for entry in page], has_more=len(found) > limit)
