"""/v1/conversations: items that responses go on from and add to."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.responses import Response

from server.conversion.readers.responses import new_items
from server.gates.callers import Caller
from server.responses.pages import page_of, read_page
from server.responses.stored_responses import CONVERSATION, ITEMS, append_items, with_ids
from server.services import CallerDep, Services, ServicesDep
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
from server.wire.shapes.fields import JsonObject
from server.wire.shapes.pages import After, Limit, Order
from server.wire.shapes.responses import KEPT_ERRORS, Include, InputItem, ItemList

router = APIRouter(
    tags=["responses"],
    route_class=JsonBodyRoute,
    default_response_class=Response,
    responses=GENERATION_ERRORS | KEPT_ERRORS,
)


@router.post("/v1/conversations", summary="Begin a conversation", responses=success_reply(ConversationObject))
async def create_conversation(
    body: Annotated[ConversationRequest, Body()], caller: CallerDep, services: ServicesDep
) -> Response:
    """Keeps a conversation, for `conversation` of responses."""
    services.unknown_fields.note(body)
    hex = uuid.uuid4().hex
    wire: ConversationObject = {
        "id": f"conv_{hex}",
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": body.metadata or {},
    }
    items = await _read_items(services, caller.owner, body.items or [], hex)
    await services.store.write(_put(caller.owner, wire), await _append(services, wire["id"], items))
    return JsonResponse(wire)


@router.get(
    "/v1/conversations/{conversation_id}", summary="A kept conversation", responses=success_reply(ConversationObject)
)
async def get_conversation(conversation_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Returns a conversation, without its items."""
    return JsonResponse(await _conversation(caller, services, conversation_id))


@router.post(
    "/v1/conversations/{conversation_id}",
    summary="Change a conversation's metadata",
    responses=success_reply(ConversationObject),
)
async def update_conversation(
    conversation_id: str,
    body: Annotated[ConversationUpdate, Body()],
    caller: CallerDep,
    services: ServicesDep,
) -> Response:
    """Replaces the metadata of a conversation."""
    wire = await _conversation(caller, services, conversation_id)
    wire["metadata"] = body.metadata or {}
    await services.store.write(_put(caller.owner, wire))
    return JsonResponse(wire)


@router.delete(
    "/v1/conversations/{conversation_id}", summary="Delete a conversation", responses=success_reply(DeletedConversation)
)
async def delete_conversation(conversation_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Deletes a conversation with its items."""
    await _conversation(caller, services, conversation_id)
    await services.store.write(Delete(conversation_id))
    deleted: DeletedConversation = {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
    return JsonResponse(deleted)


@router.post(
    "/v1/conversations/{conversation_id}/items",
    summary="Add items to a conversation",
    responses=success_reply(ItemList),
)
async def create_items(
    conversation_id: str, body: Annotated[ItemsRequest, Body()], caller: CallerDep, services: ServicesDep
) -> Response:
    """Adds items at the end."""
    await _conversation(caller, services, conversation_id)
    items = await _read_items(services, caller.owner, body.items, conversation_id.partition("_")[2])
    added = await _append(services, conversation_id, items)
    await services.store.write(added)
    return Response(page_of(added.names, added.data, has_more=False), media_type="application/json")


@router.get(
    "/v1/conversations/{conversation_id}/items",
    summary="The items of a conversation",
    responses=success_reply(ItemList),
)
async def list_items(
    conversation_id: str,
    caller: CallerDep,
    services: ServicesDep,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
    include: Include = None,
) -> Response:
    """Returns items of a conversation."""
    await _conversation(caller, services, conversation_id)
    page = await read_page(services.store, caller.owner, conversation_id, limit=limit, order=order, after=after)
    return Response(page, media_type="application/json")


@router.get(
    "/v1/conversations/{conversation_id}/items/{item_id}",
    summary="An item of a conversation",
    responses=success_reply(KeptItem),
)
async def get_item(
    conversation_id: str,
    item_id: str,
    caller: CallerDep,
    services: ServicesDep,
    include: Include = None,
) -> Response:
    """Returns one item."""
    await _conversation(caller, services, conversation_id)
    entry = await services.store.entry(caller.owner, conversation_id, ITEMS, item_id)
    if entry is None:
        raise _no_such_item(item_id)
    return Response(entry.data, media_type="application/json")


@router.delete(
    "/v1/conversations/{conversation_id}/items/{item_id}",
    summary="Delete an item of a conversation",
    responses=success_reply(ConversationObject),
)
async def delete_item(conversation_id: str, item_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Deletes one item."""
    wire = await _conversation(caller, services, conversation_id)
    if await services.store.entry(caller.owner, conversation_id, ITEMS, item_id) is None:
        raise _no_such_item(item_id)
    await services.store.write(DeleteEntries(conversation_id, ITEMS, item_id))
    return JsonResponse(wire)


async def _append(services: Services, id: str, items: list[JsonObject]) -> Append:
    return await services.off_loop.run(lambda: append_items(id, items))


def _no_such_item(id: str) -> ApiError:
    return ApiError(404, f"Item with id '{id[:100]}' not found.", code="item_not_found")


async def _conversation(caller: Caller, services: Services, id: str) -> ConversationObject:
    return await services.responses.stored.conversation(caller.owner, id)


async def _read_items(services: Services, owner: str, sent: list[InputItem], hex: str) -> list[JsonObject]:
    items = await services.off_loop.run(lambda: new_items(sent, "items"))
    return with_ids(await services.responses.stored.resolved(owner, items), hex, secrets.randbits(40))


def _put(owner: str, wire: ConversationObject) -> Put:
    return Put(StoredObject(id=wire["id"], kind=CONVERSATION, owner=owner, body={**wire}, expendable=True))
