"""Keys: which headers let a caller in, and that only hashes are compared."""

from __future__ import annotations

import base64

import pytest

from server.gates.credentials import Credentials
from server.gates.gate import GateMiddleware, WorkRoutes
from server.gates.rate_limits import RateLimiter
from server.telemetry.metrics import Metrics

BOTH = Credentials.from_secrets(("key-1", "ключ"), "user:pass:word")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("Bearer key-1", True),
        ("bearer key-1", True),
        ("Bearer  key-1 ", True),
        ("Bearer ключ", True),
        (basic("user:pass:word"), True),
        (basic("user:pass:word").replace("Basic", "Bearer"), True),  # as clients of the published server may send it
        ("Bearer key-", False),
        ("Bearer key-11", False),
        ("Bearer ", False),
        ("Bearer", False),
        ("key-1", False),
        ("Bearer user:pass:word", False),
        (basic("key-1"), False),
        (basic("user:pass"), False),
        ("Basic !!!", False),
        ("", False),
        (None, False),
    ],
)
def test_what_lets_a_caller_in(header: str | None, accepted: bool) -> None:
    assert (BOTH.caller(header) is not None) is accepted


def test_a_key_has_one_name_however_it_is_sent() -> None:
    spellings = ("Bearer key-1", "bearer key-1", "BEARER   key-1", "Bearer key-1 ")
    names = {BOTH.caller(header) for header in spellings}
    user = basic("user:pass:word")
    assert len(names) == 1
    assert names.isdisjoint({BOTH.caller("Bearer ключ".encode().decode("latin-1")), BOTH.caller(user)})
    assert BOTH.caller(user) == BOTH.caller(user.replace("Basic ", "basic  "))
    assert BOTH.caller(user) == BOTH.caller(user.replace("Basic ", "Bearer "))
    assert "key-1" not in str(names)


def test_secrets_are_kept_as_hashes_only() -> None:
    assert "key-1" not in repr(BOTH)
    assert "pass" not in repr(BOTH)


def test_without_credentials_nothing_is_required() -> None:
    assert not Credentials().required
    assert Credentials.from_secrets((), "a:b").required


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models", 401),
        ("/v1/chat/completions", 401),
        ("/v1", 401),
        ("//v1/models", 401),
        ("/tokenize", 401),
        ("/detokenize", 401),
        ("/anything/new", 401),
        ("/health", 200),
        ("/ready", 200),
        ("/metrics", 200),
        ("/health/../v1/models", 401),
    ],
)
async def test_only_named_routes_are_open(path: str, status: int) -> None:
    statuses = []

    async def app(scope: object, receive: object, send: object) -> None:
        statuses.append(200)

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    metrics = Metrics("m")
    scope = {"type": "http", "path": path, "headers": [], "method": "GET"}
    gate = GateMiddleware(
        app,
        credentials=BOTH,
        trusted_proxies=(),
        limiter=RateLimiter(None, None),
        admission=None,  # type: ignore[arg-type]  # it is about work, of which there is none here
        work=WorkRoutes([]),
        metrics=metrics,
    )
    await gate(scope, None, send)  # type: ignore[arg-type]
    assert statuses == [status]
    assert ("invalid_api_key" in metrics.render().decode()) == (status == 401)
