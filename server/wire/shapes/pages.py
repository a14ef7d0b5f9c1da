"""Pages of lists, and the query parameters that choose one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Query
from typing_extensions import TypedDict

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query(description="by default the newest first")]
After = Annotated[str | None, Query(description="id of the item before the page")]


class Page(TypedDict):
    """A page of a list, but for its `data`."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_around(ids: Sequence[str], *, has_more: bool) -> Page:
    """Returns what stands around the objects with these ids."""
    first_id, last_id = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "first_id": first_id, "last_id": last_id, "has_more": has_more}
