"""Pages of lists, and the query parameters that choose one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Query
from typing_extensions import TypedDict

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query(description="by default the newest first")]
After = Annotated[str | None, Query(description="id of the item before the page")]


class PageEnds(TypedDict):
    """The fields of a page after its `data`."""

    first_id: str | None
    last_id: str | None
    has_more: bool


class _List(TypedDict):
    object: Literal["list"]


class Page(_List, PageEnds):
    """A page of a list, but for its `data`."""


def page_ends(ids: Sequence[str], *, has_more: bool) -> PageEnds:
    """Returns the fields after the objects with these ids."""
    first_id, last_id = (ids[0], ids[-1]) if ids else (None, None)
    return {"first_id": first_id, "last_id": last_id, "has_more": has_more}
