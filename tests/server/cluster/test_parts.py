"""The parts of a cluster that need no Ray: arguments, routing, fronts, metrics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Scope

from model.contract.errors import ConfigError
from server.cluster.front import Front
from server.cluster.metrics_board import MetricsBoard, merge
from server.cluster.options import deployment_options, read_arguments
from server.cluster.prefix_routing import rank, routing_key
from server.gates import body_limits


def chat(*turns: tuple[str, str], **more: Any) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns], **more}).encode()


# --- arguments


def test_text_and_typed_arguments_are_the_same() -> None:
    text = {"model": "m", "num_replicas": "2", "max-num-seqs": "8", "device": "cpu", "api_key": "a,b"}
    typed = {"model": "m", "num_replicas": 2, "max_num_seqs": 8, "device": "cpu", "api_key": ["a", "b"]}
    assert read_arguments(text, {}) == read_arguments(typed, {})
    options, settings = read_arguments(text, {"QWEN_SERVER_PORT": "9", "HOME": "/"})
    assert (options.num_replicas, settings.max_num_seqs, settings.port) == (2, 8, 9)
    assert settings.host == "0.0.0.0", "a proxy stands before it: any name may be its own"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modle": "m"}, "unknown setting 'modle'; did you mean model"),
        ({"num_replicas": "many"}, "^num_replicas: "),
        ({"num_replicas": 3, "max_replicas": 2}, "max_replicas must be at least num_replicas"),
        ({"max_num_seqs": "0"}, "--max-num-seqs: "),
        ({"ssl_certfile": "cert.pem"}, "ssl_certfile would not be used"),
        ({"num_replicas": 2, "allow_lora_updates": True}, "on one of the replicas only"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_arguments(arguments, {})
    assert "\n" not in str(caught.value)


def test_what_ray_is_told() -> None:
    told = deployment_options(*read_arguments({"model": "m", "num_replicas": 2, "device": "cpu", "num_cpus": 3}, {}))
    assert told["num_replicas"] == 2
    assert told["placement_group_bundles"] == [{"CPU": 3.0}]
    scaled = {"model": "m", "num_replicas": 1, "max_replicas": 4, "num_gpus": 2, "shutdown_timeout_s": 50}
    told = deployment_options(*read_arguments(scaled, {}))
    assert told["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 2.0}]
    assert (told["autoscaling_config"]["min_replicas"], told["autoscaling_config"]["max_replicas"]) == (1, 4)
    assert told["graceful_shutdown_timeout_s"] > 50, "no stream is cut that the server would let finish"
    assert told["max_ongoing_requests"] > 1024, "the server's own queue is the one that is fair"


# --- routing


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = routing_key(chat(("system", "S"), ("user", "A")))
    assert routing_key(chat(("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), temperature=0)) == first
    assert routing_key(chat(("system", "S"), ("user", "B"))) != first
    assert routing_key(chat(("system", "T"), ("user", "A"))) != first
    messages = json.dumps({"system": "S", "messages": [{"role": "user", "content": "A"}], "max_tokens": 1}).encode()
    assert routing_key(messages) == routing_key(messages.replace(b'"max_tokens": 1', b'"max_tokens": 2'))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"messages": 3}', b'{"messages": [1, null]}', b"[" * 10**5]
)
def test_any_body_has_a_key(body: bytes) -> None:
    assert len(routing_key(body)) == 32


def test_a_lost_replica_moves_only_its_own_share() -> None:
    names = ["a", "b", "c", "d"]
    keys = [routing_key(chat(("user", str(number)))) for number in range(400)]
    before = {key: rank(key, names)[0] for key in keys}
    shares = Counter(before.values())
    assert all(60 < shares[name] < 140 for name in names)
    for key in keys:
        after = rank(key, ["a", "b", "d"])[0]
        assert after == before[key] or before[key] == "c"


# --- fronts


class Replicas:
    """Answers with the size of the body."""

    def options(self, **options: Any) -> Replicas:
        return self

    def remote(self, scope: Scope, body: bytes, *, key: str | None) -> Replicas:
        self._body = body
        return self

    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        answer = PlainTextResponse(str(len(self._body)))
        yield [
            {"type": "http.response.start", "status": 200, "headers": answer.raw_headers},
            {"type": "http.response.body", "body": answer.body, "more_body": False},
        ]

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
async def test_a_front_holds_no_more_than_a_server(path: str) -> None:
    """It holds whole bodies, also of files: none arrives cut short."""
    app = Front(cast(Any, Replicas()), 100).__serve_build_asgi_app__()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front") as client:
        assert (await client.post(path, content=b"x" * 100)).text == "100"

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 40

        for content in (b"x" * 101, pieces()):
            response = await client.post(path, content=content)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "request_too_large"
        of_messages = (await client.post("/v1/messages", content=b"x" * 101)).json()
        assert (of_messages["type"], of_messages["error"]["type"]) == ("error", "request_too_large")


async def test_an_address_may_have_half_of_what_a_front_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "_SMALL_BODY_BYTES", 0)
    front = Front(cast(Any, Replicas()), 100)
    app = front.__serve_build_asgi_app__()
    may_end = asyncio.Event()
    budget = front._limited.budget

    async def halves() -> AsyncIterator[bytes]:
        yield b"x" * 50
        await may_end.wait()
        yield b"x" * 50

    def client_at(address: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 9)), base_url="http://front")

    async with client_at("192.0.2.1") as one, client_at("192.0.2.2") as other:
        held = [asyncio.create_task(one.post("/v1/files", content=halves())) for _ in range(32)]
        while budget.num_bytes < 32 * 50:
            await asyncio.sleep(0)
        assert (await one.post("/v1/files", content=b"x")).status_code == 429
        assert (await other.post("/v1/files", content=b"x" * 100)).status_code == 200
        may_end.set()
        statuses = Counter([(await request).status_code for request in held])
    assert statuses[429], "not all of them may grow"
    assert budget.num_bytes == 0


# --- metrics


TEXT = """# HELP tokens_total All.
# TYPE tokens_total counter
tokens_total{model="m"} %d.0
# HELP wait_seconds Time.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="1.0"} 2.0
wait_seconds_bucket{le="+Inf"} 3.0
wait_seconds_count 3.0
wait_seconds_sum 4.5
"""


def test_metrics_of_replicas_stand_beside_each_other() -> None:
    lines = merge({"b": TEXT % 2, "a": TEXT % 1}).decode().splitlines()
    assert [line for line in lines if line.startswith("tokens_total")] == [
        'tokens_total{model="m",replica="a"} 1.0',
        'tokens_total{model="m",replica="b"} 2.0',
    ]
    assert lines.count("# TYPE tokens_total counter") == 1
    assert 'wait_seconds_bucket{le="+Inf",replica="b"} 3.0' in lines


def test_silent_replicas_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    board = MetricsBoard()
    now = [100.0]
    monkeypatch.setattr("server.cluster.metrics_board.time.monotonic", lambda: now[0])
    board.tell("a", "x")
    now[0] += 10
    board.tell("b", "y")
    assert board.all() == {"a": "x", "b": "y"}
    now[0] += 10
    assert board.all() == {"b": "y"}
    board.forget("b")
    assert board.all() == {}
