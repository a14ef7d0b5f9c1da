"""Conversations on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.wire.shapes.fields import FirstError, Metadata, at_most
from server.wire.shapes.generation import RequestBody
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


class ConversationObject(TypedDict):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(TypedDict):
    """A conversation that is no more."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class KeptItem(TypedDict):
    """An item, as it is kept: a message, a call, or a result."""

    id: str
    type: str
    role: NotRequired[str | None]
    content: NotRequired[list[dict[str, Any]] | None]
    status: NotRequired[str | None]
    call_id: NotRequired[str | None]
    name: NotRequired[str | None]
    arguments: NotRequired[str | None]
    input: NotRequired[str | None]
    output: NotRequired[str | list[dict[str, Any]] | None]
