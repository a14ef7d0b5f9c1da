"""Pages of lists."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ReplyModel(BaseModel):
    """A documented reply."""

    model_config = ConfigDict(protected_namespaces=())


class PageModel(ReplyModel):
    """A documented page of a list; `page_object` makes one."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_object(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Returns the wire object of a page."""
    first_id, last_id = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more}
