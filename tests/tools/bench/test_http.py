"""What a server sends, cut anywhere."""

from __future__ import annotations

import pytest

from tools.bench.http import Disconnected, ProtocolError, ResponseParser
from tools.event_parser import EventParser

CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n,\r\n00a\r\n 1234\r\n678\r\n0\r\nTrailer: x\r\n\r\n"
)
FIXED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 7\r\nConnection: Keep-Alive, Upgrade\r\n\r\nwait a "
ENDLESS = b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil the end"
CASES = [
    (CHUNKED, 200, b"hello, 1234\r\n678", True),
    (FIXED, 429, b"wait a ", True),
    (ENDLESS, 200, b"until the end", False),
]


@pytest.mark.parametrize(("data", "status", "body", "reusable"), CASES)
def test_response_cut_anywhere(data: bytes, status: int, body: bytes, reusable: bool) -> None:
    cuts = [[data[i : i + 1] for i in range(len(data))]]
    cuts += [[data[:i], data[i:]] for i in range(len(data) + 1)]
    for pieces in cuts:
        parser = ResponseParser()
        assert b"".join(map(parser.push, pieces)) == body
        if data is ENDLESS:
            assert not parser.done
            parser.eof()
        assert (parser.status, parser.done, parser.reusable) == (status, True, reusable)


def test_response_headers_and_closing() -> None:
    parser = ResponseParser()
    parser.push(b"HTTP/1.1 204 No Content\r\nConnection: close\r\nX-Two:  words here \r\n\r\n")
    assert parser.done
    assert not parser.reusable
    assert parser.headers["x-two"] == "words here"


def test_nothing_may_follow_a_response() -> None:
    parser = ResponseParser()
    assert parser.push(FIXED + b"more") == b"wait a "
    assert parser.done
    assert not parser.reusable


def test_response_cut_short() -> None:
    for end in range(len(CHUNKED)):
        parser = ResponseParser()
        parser.push(CHUNKED[:end])
        with pytest.raises(Disconnected, match="inside" if end else "before"):
            parser.eof()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1_0\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 17 + b"\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 5000,
    ],
)
def test_not_http(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().push(data)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_events_cut_anywhere(newline: bytes) -> None:
    lines = ["", "", ": ping", "", 'data: {"a": "é"}', "", "id: 1", "event: x", "data:two", "data: lines", ""]
    lines += ["retry: 5", "", "data: [DONE]", "", "data: no end"]
    data = "\n".join(lines).encode().replace(b"\n", newline)
    expected = ['{"a": "é"}'.encode(), b"two\nlines", b"[DONE]"]
    cuts = [[data[i : i + 1] for i in range(len(data))]]
    cuts += [[data[:i], data[i:]] for i in range(len(data) + 1)]
    for pieces in cuts:
        parser = EventParser()
        assert [event for piece in pieces for event in parser.push(piece)] == expected
