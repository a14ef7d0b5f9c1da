"""Addresses of servers as users write them."""

from __future__ import annotations

import sys

import pytest

from tools.api_address import open_client, parse_address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://a.org/v1/", "https://a.org/v1/"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert parse_address(text).geturl() == shown


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "http://x:80000", "http://x:0", "x:abc", "http://[::1"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no address; write it as http"):
        parse_address(text)


def test_a_proxy_is_for_the_world_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "socksio", None)
    for local in ("localhost:1", "127.0.0.2:1", "[::1]:1"):
        open_client(parse_address(local))
    with pytest.raises(ValueError, match="SOCKS proxy"):
        open_client(parse_address("http://a.org"))
