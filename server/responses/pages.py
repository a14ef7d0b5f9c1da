"""Pages of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.wire.errors import ApiError

JsonDict = dict[str, Any]


def page_of(
    items: Sequence[JsonDict], *, limit: int, order: str, after: str | None = None, before: str | None = None
) -> JsonDict:
    """Returns a page of a list, as OpenAI has them.

    Args:
        items: all, oldest first.
        limit: the most.
        order: "asc", or "desc" with the newest first.
        after: id of the item before the page.
        before: id of the item behind the page.

    Raises:
        ApiError: there is no such item.
    """
    ordered = list(items) if order == "asc" else list(reversed(items))
    ids = [item["id"] for item in ordered]
    for param, id in (("after", after), ("before", before)):
        if id is not None and id not in ids:
            raise ApiError(400, f"'{param}' names the item {id[:100]!r}, which is not in the list.", param=param)
    start = 0 if after is None else ids.index(after) + 1
    end = len(ids) if before is None else ids.index(before)
    page = ordered[start:end][:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < end,
    }
