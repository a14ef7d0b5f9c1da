"""Pages of other origins cannot use the server through a browser; other clients are not affected."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.gates.browsers import BrowserGuardMiddleware
from tests.support.server_process import ServerProcess

JSON = {"content-type": "application/json"}


class FakeMetrics:
    def __init__(self) -> None:
        self.rejected: list[str] = []

    def count_rejected(self, code: str) -> None:
        self.rejected.append(code)


async def status(
    headers: dict[str, str],
    *,
    method: str = "POST",
    host: str = "127.0.0.1",
    body: bytes | None = b"{}",
    **options: Any,
) -> int:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    metrics: Any = FakeMetrics()
    guard = BrowserGuardMiddleware(app, metrics, host=host, **{"allowed_hosts": (), "allowed_origins": (), **options})
    transport = httpx.ASGITransport(guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        reply = await client.request(method, "/v1/completions", headers=headers, content=body)
    assert metrics.rejected == ([] if reply.status_code == 200 else [reply.json()["error"]["code"]])
    return reply.status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # curl with a body without a Content-Type, and any SDK
        (JSON, 200),
        ({"sec-fetch-mode": "cors"}, 200),  # node's fetch
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin", **JSON}, 200),
        ({"origin": "http://127.0.0.1:8000", **JSON}, 200),
        ({"origin": "https://chat.example", "sec-fetch-site": "same-origin", **JSON}, 200),  # behind a proxy
        ({"sec-fetch-site": "none", **JSON}, 200),
        ({"origin": "http://evil.example", "sec-fetch-site": "cross-site", **JSON}, 403),
        ({"origin": "http://evil.example", "sec-fetch-site": "cross-site"}, 403),  # a Blob, a beacon
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site", **JSON}, 403),
        ({"origin": "http://127.0.0.1:3000", **JSON}, 403),
        ({"origin": "https://127.0.0.1:8000.evil.example", **JSON}, 403),
        ({"origin": "null", **JSON}, 403),
        ({"origin": "", **JSON}, 403),
        ({"origin": "http://[", **JSON}, 403),
        ({"sec-fetch-site": "cross-site", **JSON}, 403),
        ({"sec-fetch-site": "same-site", **JSON}, 403),
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, 415),
    ],
)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_who_may_send(headers: dict[str, str], expected: int, method: str) -> None:
    assert await status(headers, method=method) == expected


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_asking_is_free(method: str) -> None:
    assert await status({"origin": "http://evil.example", "sec-fetch-site": "cross-site"}, method=method) in (200, 403)
    assert await status({"sec-fetch-site": "cross-site"}, method=method, body=None) == 200


async def test_allowed_origins_may_but_not_without_saying_what_they_send() -> None:
    headers = {"origin": "https://chat.example", "sec-fetch-site": "cross-site"}
    for origins in (("https://chat.example",), ("*",)):
        assert await status({**headers, **JSON}, allowed_origins=origins) == 200
        assert await status(headers, allowed_origins=origins) == 415
        assert await status(headers, allowed_origins=origins, body=None) == 200
    assert await status({**headers, **JSON}, allowed_origins=("https://other.example",)) == 403


@pytest.mark.parametrize(
    ("name", "is_local"),
    [
        ("127.0.0.1:8000", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("qwen.localhost:8000", True),
        ("localhost.", True),
        ("[::1]:8000", True),
        ("rebound.example", False),
        ("rebound.example:8000", False),
        ("127.0.0.1.nip.example", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("[2001:db8::1]:8000", False),
    ],
)
async def test_a_local_server_answers_to_local_names_only(name: str, is_local: bool) -> None:
    for method in ("GET", "POST"):
        for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
            assert await status({"host": name, **JSON}, method=method, host=host) == (200 if is_local else 403)
        for host in ("0.0.0.0", "::", "192.0.2.1"):
            assert await status({"host": name, **JSON}, method=method, host=host) == 200


async def test_other_names_can_be_allowed_and_then_others_are_not() -> None:
    names = {"allowed_hosts": ("Chat.example", "[2001:db8::1]")}
    for host in ("127.0.0.1", "0.0.0.0"):
        for name in ("chat.example", "chat.example:8000", "[2001:db8::1]:80", "localhost"):
            assert await status({"host": name, **JSON}, host=host, **names) == 200
        assert await status({"host": "other.example", **JSON}, host=host, **names) == 403
        assert await status({"host": "other.example", **JSON}, host=host, allowed_hosts=("*",)) == 200


def test_the_server_is_guarded(server: ServerProcess) -> None:
    """As Chromium sends them: a beacon of a page elsewhere, and a page whose name was made to point here."""
    with httpx.Client(base_url=server.url) as http:
        beacon = {"origin": "http://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        body = b'{"prompt": "hi", "max_tokens": 1}'
        reply = http.post("/v1/completions", headers=beacon, content=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "--cors-allow-origin" in reply.json()["error"]["message"]
        reply = http.get("/v1/models", headers={"host": "rebound.example"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed")
        assert "--allowed-host" in reply.json()["error"]["message"]
        assert http.post("/v1/completions", content=body).status_code == 200
        own = {"origin": server.url, "sec-fetch-site": "same-origin", **JSON}
        assert http.post("/v1/completions", headers=own, content=body).status_code == 200
