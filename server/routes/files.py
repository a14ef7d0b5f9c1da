"""/v1/files: what batches are made of and what they leave, and whatever else a client wants kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated, Literal, cast
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from server.files.form_reader import FormReader
from server.files.stored_files import FILE, PIECE_BYTES, content_of, file_object
from server.gates.callers import Caller
from server.services import CallerDep, Services, ServicesDep
from server.store.errors import StoreError
from server.store.records import Delete, StoredObject
from server.wire.errors import ApiError, JsonResponse
from server.wire.json_body import BoundedJsonRoute
from server.wire.openapi import error_reply, success_reply
from server.wire.shapes.files import (
    MAX_EXPIRY_S,
    MIN_EXPIRY_S,
    PURPOSES,
    STORE_ERRORS,
    FileDeleted,
    FileList,
    FileObject,
)
from server.wire.shapes.pages import page_ends

router = APIRouter(
    tags=["files"], route_class=BoundedJsonRoute, default_response_class=Response, responses=STORE_ERRORS
)

NO_SUCH_FILE = error_reply(404, "No such file")
MAX_LISTED = 10_000
_PAGE = 500
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "minLength": 1},
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                    "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY_S, "maximum": MAX_EXPIRY_S},
                },
            }
        }
    },
}


@router.post(
    "/v1/files",
    summary="Store a file",
    openapi_extra={"requestBody": _FORM},
    responses=success_reply(FileObject) | error_reply(429, "Too many files are being sent"),
)
async def upload_file(request: Request, caller: CallerDep, services: ServicesDep) -> Response:
    """Stores a file; those of purpose `batch` hold a request a line."""
    form = FormReader(request.headers.get("content-type", ""))
    with services.uploads.reserve(caller):
        id = await services.uploads.begin(caller.owner)
        try:
            file = await _receive(request, caller, services, form, id)
            await services.uploads.finish(file)
        except BaseException:
            with contextlib.suppress(StoreError):
                await asyncio.shield(services.uploads.discard(id))
            raise
    return JsonResponse(file.body)


async def _receive(request: Request, caller: Caller, services: Services, form: FormReader, id: str) -> StoredObject:
    """Stores a file's content piece by piece as it comes; returns the object that makes it a file.

    A refused file is read to its end all the same: a client that is cut off while it sends never reads the reply.
    """
    num_bytes = 0
    refusal: ApiError | StoreError | None = None
    async for data in request.stream():
        if refusal is not None:
            continue
        try:
            form.push(data)
            if piece := form.take(PIECE_BYTES):
                await services.uploads.add(id, piece, num_bytes)
                num_bytes += len(piece)
        except (ApiError, StoreError) as error:
            refusal = error
    if refusal is not None:
        raise refusal
    form.finish()
    if piece := form.take():
        await services.uploads.add(id, piece, num_bytes)
        num_bytes += len(piece)
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise ApiError(400, "'purpose': field required.", param="purpose")
    if purpose not in PURPOSES:
        raise ApiError(400, f"'purpose': should be one of {', '.join(PURPOSES)}.", param="purpose")
    if not num_bytes:
        raise ApiError(400, "'file': is empty.", param="file")
    return file_object(id, caller.owner, form.filename or "", purpose, num_bytes, _expiry(form.fields))


def _expiry(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError(400, "'expires_after[anchor]': should be created_at.", param="expires_after[anchor]")
    is_number = seconds is not None and seconds.isascii() and seconds.isdecimal() and len(seconds) < 9
    if not is_number or not MIN_EXPIRY_S <= int(seconds or 0) <= MAX_EXPIRY_S:
        raise ApiError(
            400,
            f"'expires_after[seconds]': should be a number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}.",
            param="expires_after[seconds]",
        )
    return int(seconds or 0)


@router.get("/v1/files", summary="List files", responses=success_reply(FileList))
async def list_files(
    caller: CallerDep,
    services: ServicesDep,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """Lists your files, the newest first."""
    found: list[FileObject] = []
    while len(found) <= limit:
        page = await services.store.page(caller.owner, FILE, limit=_PAGE, after=after, ascending=order == "asc")
        if page is None:
            raise ApiError(400, "'after': you have no such file.", param="after")
        found += [cast(FileObject, file.body) for file in page if purpose is None or file.body["purpose"] == purpose]
        if len(page) < _PAGE:
            break
        after = page[-1].id
    data = found[:limit]
    ends = page_ends([file["id"] for file in data], has_more=len(found) > limit)
    files: FileList = {"object": "list", "data": data, **ends}
    return JsonResponse(files)


@router.get("/v1/files/{file_id}", summary="Describe a file", responses=success_reply(FileObject) | NO_SUCH_FILE)
async def get_file(file_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Tells what is known of a file."""
    return JsonResponse((await _find(caller, services, file_id)).body)


@router.get(
    "/v1/files/{file_id}/content",
    summary="Read a file",
    responses={200: {"content": {"application/octet-stream": {}}}, **NO_SUCH_FILE},
)
async def get_file_content(file_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Sends the bytes of a file."""
    file = await _find(caller, services, file_id)
    name = quote(file.body["filename"].encode("utf-8", errors="replace"), safe="")
    return StreamingResponse(
        content_of(services.store, file.owner, file_id),
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(file.body["bytes"]),
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.delete("/v1/files/{file_id}", summary="Delete a file", responses=success_reply(FileDeleted) | NO_SUCH_FILE)
async def delete_file(file_id: str, caller: CallerDep, services: ServicesDep) -> Response:
    """Deletes a file."""
    await _find(caller, services, file_id)
    await services.store.write(Delete(file_id))
    deleted: FileDeleted = {"id": file_id, "object": "file", "deleted": True}
    return JsonResponse(deleted)


async def _find(caller: Caller, services: Services, file_id: str) -> StoredObject:
    file = await services.store.get(caller.owner, FILE, file_id)
    if file is None:
        raise ApiError(404, f"You have no file '{file_id[:100]}'.", code="not_found", param="id")
    return file
