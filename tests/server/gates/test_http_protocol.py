"""Limits of one connection: slow and large heads, pipelining, slow readers; and old or odd clients."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.gates import http_protocol
from server.gates.direct_body import direct_body
from server.gates.http_protocol import MAX_HEAD_BYTES, HttpProtocol
from tests.support.server_process import ServerProcess


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body of the request."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Client:
    """The other end of a connection with the protocol."""

    def __init__(self, protocol: HttpProtocol, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.protocol = protocol
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.read(1 << 16), 5)


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    config = uvicorn.Config(app, ws="none", log_config=None)
    protocol = HttpProtocol(send_timeout_s=0.2, config=config, server_state=ServerState(), app_state={})
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    yield Client(protocol, reader, writer)
    writer.close()
    protocol.transport.abort()


async def test_pieces_of_a_body_may_go_past_the_application(client: Client) -> None:
    were_open: list[bool | None] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        body = direct_body(scope)
        were_open.append(body and body.is_open())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        were_open.append(body and body.is_open())
        if body is not None and body.is_open():
            body.write(b"one ")
        await send({"type": "http.response.body", "body": b"two ", "more_body": True})
        if body is not None and body.is_open():
            body.write(b"three")
            while body.is_open():  # nobody reads now
                body.write(b"." * 1000)
            assert client.protocol.transport.get_write_buffer_size() < 1 << 17
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        were_open.append(body and body.is_open())

    client.protocol.app = stream
    client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    told = b""
    while not told.endswith(b"\r\n0\r\n\r\n"):
        told += await asyncio.wait_for(client.reader.read(1 << 20), 5)
    assert b"\r\n4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n3e8\r\n..." in told
    client.writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
    assert (await client.ask(b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\ntwo ")
    assert were_open == [False, True, False, None, None, None, False, False, False]


GOOD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"


async def test_a_good_request_and_a_second_one(client: Client) -> None:
    assert (await client.ask(GOOD)).endswith(b"\r\n\r\nhi")
    await asyncio.sleep(0.3)  # an idle connection is no head that takes too long
    assert (await client.ask(GOOD)).startswith(b"HTTP/1.1 200")


TWO = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_who_leaves_with_a_second_request_waiting_has_left_the_first_too(client: Client) -> None:
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        told.set_result((await receive())["type"])
        assert not (body := direct_body(scope)) or not body.is_open()

    client.protocol.app = stream
    client.writer.write(TWO)
    await asyncio.wait_for(client.reader.readuntil(b"one"), 5)
    client.writer.close()
    assert await asyncio.wait_for(told, 5) == "http.disconnect"


async def test_requests_that_wait_on_one_connection_are_few(client: Client) -> None:
    """A read of 256 KiB may hold nine thousand requests, each of which takes some kilobytes."""
    left: list[str] = []

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        left.append((await receive())["type"])
        left.append((await receive())["type"])

    client.protocol.app = wait
    assert b"400 Bad Request" in await client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
    assert len(client.protocol.pipeline) == http_protocol._MAX_PIPELINED
    assert await client.ask(b"") == b""
    assert left == ["http.request", "http.disconnect"]


async def test_no_probe_goes_into_a_reply_with_a_second_request_waiting(client: Client) -> None:
    may_begin = asyncio.Event()

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await may_begin.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        client.protocol._probe(60)
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    client.protocol.app = reply
    client.writer.write(TWO)
    client.writer.write_eof()
    await asyncio.wait_for(client.reader.readuntil(b"100 Continue\r\n\r\n"), 5)
    may_begin.set()
    told = await asyncio.wait_for(client.reader.read(), 5)
    replies = told[told.index(b"HTTP/1.1 200") :]
    assert b"100 Continue" not in replies
    assert b"\r\n2\r\n/1\r\n0\r\n\r\nHTTP/1.1 200 OK" in replies
    assert replies.endswith(b"\r\n2\r\n/2\r\n0\r\n\r\n")


JAVA = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"


@pytest.mark.parametrize("rest", [b"Content-Length: 6\r\n\r\nhello!", CHUNKED])
@pytest.mark.parametrize("cut", [10_000, 30, 5, 1])
async def test_an_offer_of_another_protocol_is_ignored(
    client: Client, rest: bytes, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\n" + JAVA + rest
    for _ in range(2):  # the connection lives on
        for at in range(0, len(request), cut):
            client.writer.write(request[at : at + cut])
            await asyncio.sleep(0)
        assert (await client.ask(b"")).endswith(b"\r\n\r\nhello!")
    assert not caplog.records
    pipelined = await client.ask(request + request.replace(b"Upgrade,", b"close, Upgrade,"))
    while not client.reader.at_eof():
        pipelined += await client.ask(b"")
    assert pipelined.count(b"\r\n\r\nhello!") == 2
    assert b"connection: close" in pipelined


async def test_a_wish_for_a_tunnel_is_answered_as_any_request(client: Client) -> None:
    answer = await client.ask(b"CONNECT a.org:443 HTTP/1.1\r\nHost: a.org\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 ")


async def stream_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in pieces of unknown length, as event streams do."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for body in (b"data: 1\n\n", b"", b"data: 2\n\n"):
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: 3\n\n"})


@pytest.mark.parametrize(("method", "streamed"), [(b"GET", b"data: 1\n\ndata: 2\n\ndata: 3\n\n"), (b"HEAD", b"")])
@pytest.mark.parametrize("wish", [b"", b"Connection: keep-alive\r\n"])
async def test_streams_to_old_clients_are_not_chunked(
    client: Client, method: bytes, streamed: bytes, wish: bytes
) -> None:
    """The end of the connection is the end of the reply; what has a length is sent as ever."""
    client.protocol.app = stream_app
    reply = b""
    client.writer.write(method + b" / HTTP/1.0\r\n" + wish + b"\r\n")
    while piece := await client.ask(b""):
        reply += piece
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert head.lower().count(b"connection: ") == head.count(b"connection: close") == 1
    assert body == streamed


def test_a_generation_streamed_to_an_old_client(server: ServerProcess) -> None:
    body = b'{"prompt": "a", "max_tokens": 2, "ignore_eos": true, "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 20) as connection:
        connection.sendall(head + body)
        reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, events = reply.partition(b"\r\n\r\n")
    assert re.findall(rb"connection: \S+|transfer-encoding", head.lower()) == [b"connection: close"]
    assert events.startswith(b"data: {") and events.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_replies_of_known_length_to_old_clients(client: Client) -> None:
    answer = await client.ask(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.endswith(b"\r\n\r\nhi")
    assert b"content-length: 2" in answer
    assert await client.ask(b"") == b""


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX: ", b"GET /", b"GET / HTTP/1.1\r\nX"])
async def test_a_head_that_is_too_large(client: Client, start: bytes) -> None:
    client.writer.write(GOOD)
    assert (await client.reader.read(1 << 16)).endswith(b"hi")
    client.writer.write(start)
    client.writer.write(b"y" * (MAX_HEAD_BYTES - 1000))
    await asyncio.sleep(0.02)
    answer = await client.ask(b"y" * (MAX_HEAD_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"request_too_large"' in answer


async def test_many_small_headers_are_too_large_together(client: Client) -> None:
    answer = await client.ask(b"GET / HTTP/1.1\r\n" + b"X: 0123456789\r\n" * 8000)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_what_is_not_http_is_told_in_the_usual_shape(client: Client) -> None:
    answer = await client.ask(b"hello?\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'{"error":{"message":"Invalid HTTP request received.' in answer


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost"])
async def test_a_head_that_takes_too_long(client: Client, head: bytes) -> None:
    assert await client.ask(head) == b""


async def test_a_client_that_reads_too_slowly(client: Client) -> None:
    protocol = client.protocol
    await client.ask(GOOD)
    protocol.pause_writing()
    await asyncio.sleep(0.1)
    protocol.resume_writing()
    await asyncio.sleep(0.2)
    assert not protocol.transport.is_closing(), "it has caught up in time"
    protocol.pause_writing()
    assert await client.ask(b"") == b""
