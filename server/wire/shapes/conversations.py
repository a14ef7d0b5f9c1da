"""Conversations on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.wire.shapes.fields import FirstError, Metadata, at_most
from server.wire.shapes.generation import RequestBody
from server.wire.shapes.pages import ReplyModel
from server.wire.shapes.responses import InputItem

MAX_NEW_ITEMS = 20

NewItems = Annotated[list[InputItem], FirstError(), Field(max_length=MAX_NEW_ITEMS), at_most(MAX_NEW_ITEMS)]


class ConversationRequest(RequestBody):
    """POST /v1/conversations."""

    items: NewItems | None = Field(None, description="to begin with, oldest first")
    metadata: Metadata | None = Field(None, description="kept with the conversation")


class ConversationUpdate(RequestBody):
    """POST /v1/conversations/{id}."""

    metadata: Metadata | None = Field(None, description="in place of what was there")


class ItemsRequest(RequestBody):
    """POST /v1/conversations/{id}/items."""

    items: NewItems = Field(description="to add, oldest first")


class ConversationObject(ReplyModel):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(ReplyModel):
    """A conversation that is no more."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class KeptItem(ReplyModel):
    """An item, as it is kept: a message, a call, or a result."""

    id: str
    type: str
    role: str | None = None
    content: list[dict[str, Any]] | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[dict[str, Any]] | None = None
