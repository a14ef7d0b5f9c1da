"""Sends malformed requests of many kinds. None may be answered with a 5xx.

Half of them are malformed HTTP (sent as bytes), half are valid HTTP with a malformed body. All are made from one seed.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from typing import Any

from benchmarks.soak.server import SoakServer

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
# By then a complete request is answered (or its connection closed); an incomplete one never is.
_ANSWER_TIMEOUT_S = 0.7
_PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
_GOOD_BODIES: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
    },
    {"prompt": "hi", "max_tokens": 2, "logprobs": 1, "echo": True, "stop": ["x"], "logit_bias": {"1": 2}},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "response_format": {"type": "json_object"}},
    {"tokens": [1, 2, 3]},
)

Writer = Callable[[random.Random], bytes]


def _odd_values(rng: random.Random) -> Any:
    return rng.choice(
        (
            None,
            True,
            -1,
            0,
            2**63,
            -(2**70),
            1.5,
            "",
            "\x00",
            "\ud800",
            "<|im_end|>",
            "x" * 5000,
            [],
            [[]],
            [None],
            {},
            {"": {}},
            {"type": "object", "properties": {"a": {"$ref": "#"}}},
            [{"role": "user"}],
            {"type": "json_schema"},
            list(range(50)),
        )
    )


def mutated_body(rng: random.Random) -> Any:
    """Returns a request with odd values in odd places."""
    body: Any = json.loads(json.dumps(rng.choice(_GOOD_BODIES)))
    for _ in range(rng.randint(1, 3)):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.6:
                place = place[key]
                continue
            place[key] = _odd_values(rng)
            break
    if rng.random() < 0.3:
        names = ("n", "seed", "top_p", "temperature", "tools", "functions", "structured_outputs", "stop", "modalities")
        body[rng.choice(names)] = _odd_values(rng)
    return body


def _post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions", length: bytes | None = None) -> bytes:
    length = str(len(body)).encode() if length is None else length
    start = b"POST " + path + b" HTTP/1.1"
    lines = [start, b"Host: localhost", b"Connection: close", b"Content-Length: " + length, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _broken_json(rng: random.Random) -> bytes:
    good = json.dumps(rng.choice(_GOOD_BODIES)).encode()
    depth = rng.choice((100, 2000, 100_000))
    body = rng.choice(
        (
            good[: rng.randrange(len(good))],
            good + b"}",
            b"",
            b"null",
            b"[]",
            b'"text"',
            b"12",
            good.decode().encode("utf-16"),
            good.decode().encode("utf-32"),
            b"\xef\xbb\xbf" + good,
            b"\xff\xfe" + good,
            good.replace(b"hi", b"\xc3\x28"),
            good.replace(b"hi", b"\\ud800"),
            good.replace(b"hi", b"\x01"),
            good.replace(b"2", b"1e999"),
            good.replace(b"2", b"9" * rng.choice((30, 5000))),
            good.replace(b"2", b"NaN"),
            good.replace(b"2", b"-Infinity"),
            b"[" * depth,
            b'{"a":' * depth + b"1" + b"}" * depth,
            b'{"messages":' + b"[" * depth + b"]" * depth + b"}",
            b'{"prompt": "a", "prompt": ["b"], "max_tokens": 1, "max_tokens": "x"}',
            bytes(rng.randrange(256) for _ in range(rng.randrange(400))),
        )
    )
    kinds = (b"application/json", b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data", b"\xff")
    encodings = (b"X-None: 1", b"Content-Encoding: gzip", b"Content-Encoding: nonsense", b"Accept: \x7f")
    path = rng.choice(_PATHS).encode()
    return _post(body, b"Content-Type: " + rng.choice(kinds), rng.choice(encodings), path=path)


def _mutated(rng: random.Random) -> bytes:
    body = json.dumps(mutated_body(rng)).encode()
    return _post(body, b"Content-Type: application/json", path=rng.choice(_PATHS).encode())


def _broken_head(rng: random.Random) -> bytes:
    good = _post(json.dumps(_GOOD_BODIES[0]).encode(), b"Content-Type: application/json")
    many = b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(rng.choice((200, 20_000))))
    junk = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 300)))
    return rng.choice(
        (
            junk,
            junk + b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + junk,
            b"GET / HTTP/1.1\r\n\r\n",
            b"BREW /coffee HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /" + b"a" * rng.choice((9_000, 70_000, 300_000)) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /%00%ff%2e%2e/" + junk.hex().encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET /v1/models/\u00e9 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
            b"GET http://[::1/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"y" * rng.choice((60_000, 100_000, 1_000_000)) + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: \x00\r\nX-Request-Id: " + b"z" * 500 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: "
            + junk.replace(b"\r", b"").replace(b"\n", b"")
            + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + junk,
            good[: rng.randrange(1, len(good))],
            good.replace(b"POST", b"PO ST"),
            good.replace(b"\r\n", b"\n"),
            good + junk,
        )
    )


def _broken_framing(rng: random.Random) -> bytes:
    body = json.dumps(_GOOD_BODIES[0]).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n"
    size = b"%x\r\n" % len(body)
    return rng.choice(
        (
            _post(body, length=rng.choice((b"-1", b"x", b"", b"1 2", b"0x10", b"+5", b"9" * 30, b"\xb2"))),
            _post(body, length=str(len(body) - rng.randint(1, 20)).encode()),
            _post(body, length=str(len(body) + rng.randint(1, 2000)).encode()),
            _post(body, length=b"999999999999"),
            _post(body, b"Content-Length: 3"),
            _post(body, b"Transfer-Encoding: chunked"),
            _post(body, b"Transfer-Encoding: gzip, identity"),
            _post(body, b"Expect: 100-continue"),
            _post(body, b"Expect: the unexpected"),
            head + b"\r\n" + body,
            head + b"\r\n" + b"zz\r\n" + body,
            head + b"\r\n" + b"ffffffffffffffffff\r\n" + body,
            head + b"\r\n" + b"-5\r\n" + body,
            head + b"\r\n" + size + body + b"\r\n",
            head + b"\r\n" + size + body + b"0\r\n\r\n",
            head + b"\r\n" + size + body + b"\r\n0\r\nTrailer: " + b"t" * rng.choice((5, 100_000)) + b"\r\n\r\n",
            head + b"\r\n" + size + body + b"\r\n0\r\n\r\n" + b"GARBAGE" * rng.randint(1, 50),
            head + b"Content-Length: 5\r\n\r\n" + size + body + b"\r\n0\r\n\r\n",
            head + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
            head + b"\r\n" + size[:-2] + b";ext=" + b"e" * 20_000 + b"\r\n" + body + b"\r\n0\r\n\r\n",
        )
    )


_WRITERS: tuple[Writer, ...] = (_broken_json, _mutated, _mutated, _broken_head, _broken_framing)


async def send_raw(server: SoakServer, data: bytes, rng: random.Random) -> int:
    """Sends bytes, sometimes in pieces, and returns the highest status in the answer; 0 for none."""
    reader, writer = await asyncio.open_connection(server.url.hostname, server.url.port)
    answer = b""
    try:
        if rng.random() < 0.2 and len(data) > 2:
            cut = rng.randrange(1, len(data))
            writer.write(data[:cut])
            await asyncio.sleep(0.02)
            data = data[cut:]
        writer.write(data)
        while piece := await asyncio.wait_for(reader.read(1 << 16), _ANSWER_TIMEOUT_S):
            answer += piece
    except (OSError, TimeoutError):
        pass  # a reset is an answer too; what came before it counts
    finally:
        writer.transport.abort()
    statuses = [int(status) for status in _STATUS.findall(answer)]
    return max(statuses, default=0)


async def malformed(server: SoakServer, *, requests: int, concurrency: int = 8, seed: int = 0) -> dict[str, Any]:
    """Sends malformed requests and counts the answers.

    Args:
        server: ready and idle.
        requests: total number.
        concurrency: requests at a time.
    """
    counts: dict[int, int] = {}
    offenders: list[str] = []
    numbers = list(range(requests))

    async def worker() -> None:
        while numbers:
            rng = random.Random(seed * 1_000_003 + numbers.pop())
            data = rng.choice(_WRITERS)(rng)
            status = await send_raw(server, data, rng)
            counts[status] = counts.get(status, 0) + 1
            if status >= 500 and len(offenders) < 10:
                offenders.append(f"{status}: {data[:600]!r}")

    before = await asyncio.to_thread(server.settled_footprint)
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    after = await asyncio.to_thread(server.settled_footprint)
    return {
        "requests": requests,
        "statuses": {str(status): counts[status] for status in sorted(counts)},
        "server_errors": offenders,
        "tracebacks": server.log().count("Traceback"),
        "restarts": server.metrics()["qwen:engine_restarts_total"],
        "fds": [before.server_fds, after.server_fds],
    }
