"""/v1/conversations: items that responses go on from and add to."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from server.conversion.readers.responses import new_items
from server.gates.callers import caller_of
from server.responses.pages import page_of, read_page
from server.responses.stored_responses import CONVERSATION, ITEMS, append_items, with_ids
from server.services import Services, ServicesDep
from server.store.records import Append, Delete, DeleteEntries, Put, StoredObject
from server.wire.errors import ApiError, JsonResponse
from server.wire.json_body import JsonBodyRoute
from server.wire.openapi import GENERATION_ERRORS, success_reply
from server.wire.shapes.conversations import (
    ConversationObject,
    ConversationRequest,
    ConversationUpdate,
    DeletedConversation,
    ItemsRequest,
    KeptItem,
)
from server.wire.shapes.responses import KEPT_ERRORS, Includable, InputItem, ItemList

router = APIRouter(tags=["responses"], route_class=JsonBodyRoute, default_response_class=Response)

JsonDict = dict[str, Any]
ERRORS = {**GENERATION_ERRORS, **KEPT_ERRORS}


@router.post("/v1/conversations", summary="Begin a conversation", responses=success_reply(ConversationObject) | ERRORS)
async def create_conversation(
    body: Annotated[ConversationRequest, Body()], request: Request, services: ServicesDep
) -> Response:
    """Keeps a conversation, for `conversation` of responses."""
    services.unknown_fields.note(body)
    hex = uuid.uuid4().hex
    owner = caller_of(request.scope).owner
    wire: JsonDict = {
        "id": f"conv_{hex}",
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": body.metadata or {},
    }
    items = await _read_items(services, owner, body.items or [], hex)
    await services.store.write(_put(owner, wire), await _append(services, wire["id"], items))
    return JsonResponse(wire)


@router.get(
    "/v1/conversations/{conversation_id}",
    summary="A kept conversation",
    responses=success_reply(ConversationObject) | ERRORS,
)
async def get_conversation(conversation_id: str, request: Request, services: ServicesDep) -> Response:
    """Returns a conversation, without its items."""
    return JsonResponse(await _conversation(request, services, conversation_id))


@router.post(
    "/v1/conversations/{conversation_id}",
    summary="Change a conversation's metadata",
    responses=success_reply(ConversationObject) | ERRORS,
)
async def update_conversation(
    conversation_id: str,
    body: Annotated[ConversationUpdate, Body()],
    request: Request,
    services: ServicesDep,
) -> Response:
    """Replaces the metadata of a conversation."""
    wire = await _conversation(request, services, conversation_id) | {"metadata": body.metadata or {}}
    await services.store.write(_put(caller_of(request.scope).owner, wire))
    return JsonResponse(wire)


@router.delete(
    "/v1/conversations/{conversation_id}",
    summary="Delete a conversation",
    responses=success_reply(DeletedConversation) | ERRORS,
)
async def delete_conversation(conversation_id: str, request: Request, services: ServicesDep) -> Response:
    """Deletes a conversation with its items."""
    await _conversation(request, services, conversation_id)
    await services.store.write(Delete(conversation_id))
    return JsonResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.post(
    "/v1/conversations/{conversation_id}/items",
    summary="Add items to a conversation",
    responses=success_reply(ItemList) | ERRORS,
)
async def create_items(
    conversation_id: str, body: Annotated[ItemsRequest, Body()], request: Request, services: ServicesDep
) -> Response:
    """Adds items at the end."""
    await _conversation(request, services, conversation_id)
    owner = caller_of(request.scope).owner
    items = await _read_items(services, owner, body.items, conversation_id.partition("_")[2])
    added = await _append(services, conversation_id, items)
    await services.store.write(added)
    return Response(page_of(added.names, added.data, has_more=False), media_type="application/json")


@router.get(
    "/v1/conversations/{conversation_id}/items",
    summary="The items of a conversation",
    responses=success_reply(ItemList) | ERRORS,
)
async def list_items(
    conversation_id: str,
    request: Request,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by default the newest first")] = "desc",
    after: Annotated[str | None, Query(description="id of the item before the page")] = None,
    include: Annotated[list[Includable] | None, Query(description="accepted; all there is is there")] = None,
) -> Response:
    """Returns items of a conversation."""
    await _conversation(request, services, conversation_id)
    owner = caller_of(request.scope).owner
    page = await read_page(services.store, owner, conversation_id, limit=limit, order=order, after=after)
    return Response(page, media_type="application/json")


@router.get(
    "/v1/conversations/{conversation_id}/items/{item_id}",
    summary="An item of a conversation",
    responses=success_reply(KeptItem) | ERRORS,
)
async def get_item(
    conversation_id: str,
    item_id: str,
    request: Request,
    services: ServicesDep,
    include: Annotated[list[Includable] | None, Query(description="accepted; all there is is there")] = None,
) -> Response:
    """Returns one item."""
    await _conversation(request, services, conversation_id)
    entry = await services.store.entry(caller_of(request.scope).owner, conversation_id, ITEMS, item_id)
    if entry is None:
        raise _no_such_item(item_id)
    return Response(entry.data, media_type="application/json")


@router.delete(
    "/v1/conversations/{conversation_id}/items/{item_id}",
    summary="Delete an item of a conversation",
    responses=success_reply(ConversationObject) | ERRORS,
)
async def delete_item(conversation_id: str, item_id: str, request: Request, services: ServicesDep) -> Response:
    """Deletes one item."""
    wire = await _conversation(request, services, conversation_id)
    if await services.store.entry(caller_of(request.scope).owner, conversation_id, ITEMS, item_id) is None:
        raise _no_such_item(item_id)
    await services.store.write(DeleteEntries(conversation_id, ITEMS, item_id))
    return JsonResponse(wire)


async def _append(services: Services, id: str, items: list[JsonDict]) -> Append:
    return await services.off_loop.run(lambda: append_items(id, items))


def _no_such_item(id: str) -> ApiError:
    return ApiError(404, f"Item with id '{id[:100]}' not found.", code="item_not_found")


async def _conversation(request: Request, services: Services, id: str) -> JsonDict:
    return (await services.responses.stored.conversation(caller_of(request.scope).owner, id)).body


async def _read_items(services: Services, owner: str, sent: list[InputItem], hex: str) -> list[JsonDict]:
    items = await services.off_loop.run(lambda: new_items(sent, "items"))
    return with_ids(await services.responses.stored.resolved(owner, items), hex, secrets.randbits(40))


def _put(owner: str, wire: JsonDict) -> Put:
    return Put(StoredObject(id=wire["id"], kind=CONVERSATION, owner=owner, body=wire, expendable=True))
