"""The middlewares around a request, called directly as ASGI apps."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.contract.engine_config import EngineConfig
from model.contract.messages import EngineStats
from model.contract.tokenizer import Tokenizer
from server.app import create_app
from server.conversion.defaults import GenerationDefaults
from server.engine.client import EngineClient
from server.gates import body_limits
from server.gates.body_limits import BodyBudget, BodyLimitMiddleware
from server.gates.callers import NOBODY, Caller
from server.gates.middleware import RequestContextMiddleware
from server.gates.request_context import request_id_var, route_path
from server.settings import Settings
from server.telemetry.metrics import EngineReadings, Metrics
from server.wire.errors import ApiError

Answer = tuple[int, dict[str, str], bytes]


async def call(app: ASGIApp, *bodies: bytes, caller: Caller = NOBODY, **headers: str) -> Answer:
    """Sends a request in pieces; returns status, headers and body of the reply."""
    pieces = list(bodies)
    sent: list[Message] = []

    async def receive() -> Message:
        if not pieces:
            return {"type": "http.disconnect"}
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app(
        {"type": "http", "method": "POST", "path": "/x", "headers": raw, "state": {"caller": caller}}, receive, send
    )
    start, *rest = sent
    reply_headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], reply_headers, b"".join(m.get("body", b"") for m in rest)


async def echo_size(scope: Scope, receive: Receive, send: Send) -> None:
    size = 0
    more = True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.mark.parametrize(
    ("pieces", "length", "status"),
    [
        ([b"x" * 10], "10", 200),
        ([b"x" * 5, b"x" * 5], None, 200),
        ([b"x" * 11], "11", 413),
        ([b"x" * 6, b"x" * 6, b"x"], None, 413),
        ([b"x"] * 40, "40", 413),
        ([b"x"], "9" * 40, 413),
        ([b"x"], "nonsense", 200),
    ],
)
async def test_body_limit(pieces: list[bytes], length: str | None, status: int) -> None:
    headers = {} if length is None else {"content_length": length}
    metrics = Metrics("m")
    got, reply_headers, body = await call(BodyLimitMiddleware(echo_size, 10, metrics), *pieces, **headers)
    assert got == status
    counted = 'qwen:requests_rejected_total{code="request_too_large",model_name="m"} 1.0' in metrics.render().decode()
    assert counted == (status == 413)
    if status == 413:
        assert json.loads(body)["error"]["code"] == "request_too_large"
        assert reply_headers["connection"] == "close"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("expect", [True, False])
async def test_a_reply_to_a_large_body_comes_after_it(declared: bool, expect: bool) -> None:
    """Proxies that have the whole reply cut off a client that still sends; one that asks first is told at once."""
    events: list[str] = []
    pieces = [b"x" * 6] * 4

    async def receive() -> Message:
        assert pieces, "nobody waits for the client to leave"
        events.append("received")
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        events.append(message["type"])

    headers = [(b"expect", b"100-continue")] * expect + [(b"content-length", b"24")] * declared
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers}
    await BodyLimitMiddleware(echo_size, 20, Metrics("m"))(scope, receive, send)
    first = 0 if declared and expect else 4
    assert events.index("http.response.start") == first
    assert events.count("received") == 4


async def test_a_body_has_a_deadline_also_if_it_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "_BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(body_limits, "_DRAIN_TIMEOUT_S", 0.0)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    await BodyLimitMiddleware(echo_size, 10, Metrics("m"))(scope, receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


async def test_a_file_that_stops_coming_is_ended_however_fast_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "_BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(body_limits, "_DRAIN_TIMEOUT_S", 0.0)
    pieces = [b"x" * (1 << 20)] * 4  # four minutes' worth at the slowest rate
    sent: list[Message] = []

    async def receive() -> Message:
        if not pieces:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": pieces.pop(), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": []}
    async with asyncio.timeout(30):
        await BodyLimitMiddleware(echo_size, 10, Metrics("m"))(scope, receive, send)
    assert sent[0]["status"] == 408
    error = json.loads(sent[1]["body"])["error"]
    assert error["code"] == "request_timeout"
    assert "too slowly" in error["message"]


async def test_large_bodies_share_a_budget_and_nobody_has_all_of_it() -> None:
    """They count until their requests end; small bodies always pass, and refused ones take nothing of the budget."""
    served = asyncio.Event()

    async def hold(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        if scope["state"]["caller"].name != "late":
            await served.wait()
        await echo_size(scope, receive, send)

    largest = 128 << 10
    middleware = BodyLimitMiddleware(hold, largest, Metrics("m"))

    def send_body(name: str, num_bytes: int) -> asyncio.Task[Answer]:
        pieces = [b"x" * (num_bytes // 2), b"x" * (num_bytes - num_bytes // 2)]
        return asyncio.create_task(call(middleware, *pieces, caller=Caller(name)))

    held = [send_body(name, largest) for name in ("a", "b") for _ in range(16)]
    held += [send_body("a", 64 << 10) for _ in range(100)]
    await asyncio.sleep(0)
    assert middleware.budget.num_bytes == 32 * largest
    for name in ("a", "late"):
        status, headers, body = await send_body(name, largest)
        assert (status, json.loads(body)["error"]["code"]) == (429, "server_overloaded")
        assert headers["retry-after"] == "5"
    assert (await send_body("late", 64 << 10))[0] == 200
    served.set()
    assert {status for status, _, _ in await asyncio.gather(*held)} == {200}
    assert middleware.budget.num_bytes == 0
    assert (await send_body("late", largest))[0] == 200


def test_one_caller_may_hold_half_of_the_budget() -> None:
    budget = BodyBudget(100)
    budget.hold(Caller("a"), 50)
    with pytest.raises(ApiError):
        budget.hold(Caller("a"), 1)
    budget.hold(Caller("b"), 40)
    with pytest.raises(ApiError):
        budget.hold(Caller("c"), 11)
    budget.release(Caller("a"), 50)
    budget.hold(Caller("c"), 50)


async def test_an_unexpected_failure_is_a_plain_500(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the secret reason")

    metrics = Metrics("m")
    with caplog.at_level(logging.ERROR):
        status, headers, body = await call(RequestContextMiddleware(broken, metrics, bool), x_request_id="mine")
    assert (status, headers["x-request-id"]) == (500, "mine")
    assert json.loads(body)["error"]["type"] == "server_error"
    assert b"secret" not in body
    assert "the secret reason" in caplog.text
    assert 'status="500"' in metrics.render().decode()


async def test_each_request_has_its_own_id() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)
        seen.append(await asyncio.create_task(read_id()))
        await echo_size(scope, receive, send)

    async def read_id() -> str:
        return request_id_var.get()

    middleware = RequestContextMiddleware(app, Metrics("m"), bool)
    replies = await asyncio.gather(*(call(middleware, b"", x_request_id=f"id-{i}") for i in range(5)))
    assert sorted(seen) == [headers["x-request-id"] for _, headers, _ in replies] == [f"id-{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "route"),
    [
        ("/v1/chat/completions", "{}", "k", 503, "/v1/chat/completions"),
        ("/v1/chat/completions", "{}", "?", 401, "/v1/chat/completions"),
        ("/v1/models", " " * 99, "k", 413, "/v1/models"),
        ("/v1/models/x", "{}", "k", 405, "/v1/models/{model_id:path}"),
        ("/v1/models/x", "{}", "?", 401, "/v1/models/{model_id:path}"),
        ("/nowhere", "{}", "?", 401, None),
        ("/nowhere", "{}", "k", 404, None),
    ],
)
async def test_what_is_refused_on_its_way_has_its_route(
    path: str, body: str, key: str, status: int, route: str | None, demo_checkpoint: Path
) -> None:
    engine = EngineClient(EngineConfig(checkpoint_path="none"))  # not started
    settings = Settings(model="m", api_key=("k",), max_body_bytes=50)
    tokenizer = Tokenizer.from_folder(demo_checkpoint)
    app = create_app(settings, tokenizer, GenerationDefaults.from_folder(demo_checkpoint), engine)
    scopes: list[Scope] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    transport = httpx.ASGITransport(watched)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        reply = await http.post(path, content=body, headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == status
        assert route_path(scopes[0]) == route
        metrics = (await http.get("/metrics")).text
    assert f'http_requests_total{{handler="{route or "none"}",method="POST",status="{status}"}} 1.0' in metrics


def test_totals_go_on_over_a_restart() -> None:
    stats: dict[str, Any] = {"now": EngineStats()}
    metrics = Metrics("m", EngineReadings(lambda: stats["now"], lambda: 1))

    def step(**values: int) -> None:
        stats["now"] = EngineStats(**values)
        metrics.observe_step(stats["now"])

    step(num_steps_total=5, num_preemptions_total=2, num_blocks=10, num_free_blocks=4)
    assert 'vllm:kv_cache_usage_perc{model_name="m"} 0.6' in metrics.render().decode()
    step(num_steps_total=1, num_preemptions_total=1, num_blocks=10, num_free_blocks=10)
    text = metrics.render().decode()
    assert 'vllm:num_preemptions_total{model_name="m"} 3.0' in text
    assert 'qwen:engine_steps_total{model_name="m"} 6.0' in text
