"""/v1/files: stored as sent, found by whoever sent them, bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.files.form_reader import FormReader
from server.gates.callers import Caller
from server.wire.errors import ApiError
from tests.conftest import sdk_of
from tests.support.light_server import light_server
from tests.support.server_process import ServerProcess

BOUNDARY = "x-y"


def form(*parts: tuple[str, bytes], boundary: str = BOUNDARY) -> bytes:
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), data)
        for head, data in parts
    )
    return body + b"--%s--\r\n" % boundary.encode()


FILE = ('name="file"; filename="../é b.jsonl"', b'{"a": 1}\r\n--x\r\n')
GOOD = form(('name="purpose"', b"batch"), FILE, ('name="other"', b""))


def test_a_form_is_read_the_same_wherever_it_is_split() -> None:
    for split in range(len(GOOD)):
        reader = FormReader(f"multipart/form-data; boundary={BOUNDARY}")
        reader.push(GOOD[:split])
        start = reader.take()
        reader.push(GOOD[split:])
        reader.finish()
        assert start + reader.take() == FILE[1]
        assert reader.fields == {"purpose": "batch", "other": ""} and reader.filename == "é b.jsonl"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (GOOD[:-6], "incomplete"),
        (b"hello", "broken"),
        (b"", "incomplete"),
        (form(('name="purpose"', b"batch")), "'file': field required"),
        (form(FILE, FILE), "one file at a time"),
        (form(('name="purpose"', b"x" * 5000)), "'purpose' is too long"),
        (form(('name="' + "x" * 9000 + '"', b"")), "broken"),
        (form(*[('name="a"', b"")] * 40), "more than 32 fields"),
    ],
    ids=range(8),
)
def test_other_forms_are_refused(body: bytes, says: str) -> None:
    reader = FormReader(f"multipart/form-data; boundary={BOUNDARY}")
    with pytest.raises(ApiError, match=says):
        for index in range(0, len(body), 100):
            reader.push(body[index : index + 100])
        reader.finish()


@pytest.fixture(scope="module")
def sdk(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with sdk_of(server) as client:
        yield client


def test_a_file_comes_back_as_it_was(sdk: openai.OpenAI, server: ServerProcess) -> None:
    content = bytes(range(256)) * 10_000
    file = sdk.files.create(
        file=("data é.bin", content), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.filename, file.purpose, file.object) == (len(content), "data é.bin", "user_data", "file")
    assert file.expires_at == file.created_at + 3600
    assert sdk.files.retrieve(file.id) == file
    assert sdk.files.content(file.id).content == content
    head = httpx.get(f"{server.url}/v1/files/{file.id}/content").headers
    assert head["content-type"] == "application/octet-stream" and head["x-content-type-options"] == "nosniff"
    assert sdk.files.delete(file.id).deleted
    for call in (sdk.files.retrieve, sdk.files.content, sdk.files.delete):
        with pytest.raises(openai.NotFoundError, match="You have no file"):
            call(file.id)


def test_files_are_listed_by_pages_and_purposes(sdk: openai.OpenAI) -> None:
    ids = [sdk.files.create(file=b"x", purpose="evals" if n % 2 else "vision").id for n in range(5)]
    assert [file.id for file in sdk.files.list(purpose="evals")] == [ids[3], ids[1]]
    assert [file.id for file in sdk.files.list(limit=2, order="asc", after=ids[0])] == ids[1:]
    page = sdk.files.list(limit=2)
    assert page.has_more and [file.id for file in page.data] == [ids[4], ids[3]]
    with pytest.raises(openai.BadRequestError, match="'after'"):
        sdk.files.list(after="file-none")
    for id in ids:
        sdk.files.delete(id)


@pytest.mark.parametrize(
    ("fields", "content", "param"),
    [
        ({}, b"x", "purpose"),
        ({"purpose": "fun"}, b"x", "purpose"),
        ({"purpose": "batch"}, b"", "file"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}, b"x",
         "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, b"x", "expires_after[anchor]"),
    ],
    ids=["no purpose", "unknown purpose", "empty", "too soon", "no anchor"],
)  # fmt: skip
def test_what_is_wrong_is_named(server: ServerProcess, fields: dict[str, str], content: bytes, param: str) -> None:
    before = httpx.get(f"{server.url}/v1/files?limit=10000").json()["data"]
    response = httpx.post(f"{server.url}/v1/files", data=fields, files={"file": ("f", content)})
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert httpx.get(f"{server.url}/v1/files?limit=10000").json()["data"] == before


def test_what_is_no_form_is_refused(server: ServerProcess) -> None:
    for headers in ({}, {"content-type": "application/json"}, {"content-type": "multipart/form-data"}):
        response = httpx.post(f"{server.url}/v1/files", content=b"{}", headers=headers)
        assert response.status_code == 400 and "multipart/form-data" in response.json()["error"]["message"]


async def test_files_belong_to_the_key_that_stored_them(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with (
        light_server(demo_checkpoint, tmp_path, api_key=("ann", "bob"), max_store_bytes=100_000) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("ann", "bob"))

        async def send(content: bytes) -> httpx.Response:
            data, files = {"purpose": "batch"}, {"file": ("f", content)}
            return await http.post("/v1/files", headers=ann, data=data, files=files)

        id = (await send(b"secret")).json()["id"]
        for method, path in (
            ("GET", f"/v1/files/{id}"),
            ("GET", f"/v1/files/{id}/content"),
            ("DELETE", f"/v1/files/{id}"),
        ):
            assert (await http.request(method, path, headers=bob)).status_code == 404
        assert (await http.get("/v1/files", headers=bob)).json()["data"] == []
        batch = {"input_file_id": id, "endpoint": "/v1/completions", "completion_window": "24h"}
        assert (await http.post("/v1/batches", headers=bob, json=batch)).json()["error"]["code"] == "file_not_found"
        assert (await send(b"x" * 60_000)).json()["error"]["code"] == "request_too_large"
        assert (await send(b"x" * 48_000)).status_code == 200
        full = await send(b"x" * 2_000)
        assert full.status_code == 507 and full.json()["error"]["code"] == "storage_full"
        assert len((await http.get("/v1/files", headers=ann)).json()["data"]) == 2


async def test_who_is_refused_on_the_way_is_told(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with (
        light_server(demo_checkpoint, tmp_path, max_store_bytes=40 << 20) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        statuses = []
        for _ in range(2):
            files = {"file": ("f", b"x" * (15 << 20))}
            statuses.append((await http.post("/v1/files", data={"purpose": "batch"}, files=files)).status_code)
        broken = await http.post(
            "/v1/files",
            content=b"--no" * (3 << 20),
            headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        )
        assert [*statuses, broken.status_code] == [200, 507, 400]
        assert [upload.id for upload in await server.services.store.all_of("upload")] == []


async def test_what_a_client_left_unfinished_is_gone(demo_checkpoint: Path, tmp_path: Path) -> None:
    async with light_server(demo_checkpoint, tmp_path) as server:
        services = server.services
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = (
            "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        writer.write(head.encode() + GOOD[:100] + b"x" * 3_000_000)
        await writer.drain()
        while not (uploads := await services.store.all_of("upload")):
            await asyncio.sleep(0.01)
        assert len(uploads) == 1
        with contextlib.ExitStack() as places:
            one, two, three = Caller("one", 1), Caller("two", 1), Caller("three", 2)
            for caller, num_places in ((one, 15), (two, 5), (three, 6)):  # the client above has one
                for _ in range(num_places):
                    places.enter_context(services.uploads.reserve(caller))
                with pytest.raises(ApiError, match="Too many files"):
                    services.uploads.reserve(caller).__enter__()
        writer.close()
        while await services.store.all_of("upload"):
            await asyncio.sleep(0.01)
