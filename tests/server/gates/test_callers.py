"""Which caller a request is from."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from model.contract.errors import ConfigError
from server.gates.callers import Caller, WaitingLine, find_caller
from server.gates.credentials import Credentials

PROXIES = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1/128")))


def caller(client: str | None, *forwarded: str, key: str | None = None, **options: Any) -> Caller:
    scope = {
        "type": "http",
        "headers": [(b"x-forwarded-for", value.encode()) for value in forwarded],
        "client": client and (client, 5),
    }
    options = {"credentials": Credentials(), "trusted_proxies": PROXIES, **options}
    return find_caller(scope, key, **options)


@pytest.mark.parametrize(
    ("client", "forwarded", "name"),
    [
        ("192.0.2.7", (), "192.0.2.7"),
        ("192.0.2.7", ("203.0.113.9",), "192.0.2.7"),  # no proxy of ours: anybody can write this
        ("10.1.1.1", ("203.0.113.9",), "203.0.113.9"),
        ("10.1.1.1", (), "10.1.1.1"),
        ("10.1.1.1", ("198.51.100.1, 203.0.113.9",), "203.0.113.9"),  # the left one the client wrote itself
        ("10.1.1.1", ("198.51.100.1, 203.0.113.9, 10.2.2.2",), "203.0.113.9"),
        ("10.1.1.1", ("203.0.113.9", "10.2.2.2"), "203.0.113.9"),  # in two lines
        ("10.1.1.1", ("10.3.3.3, 10.2.2.2",), "10.3.3.3"),
        ("10.1.1.1", ("203.0.113.9:4711",), "203.0.113.9"),
        ("10.1.1.1", ("[2001:db8:1:2::5]:4711",), "2001:db8:1:2::/64"),
        ("10.1.1.1", ("2001:db8:1:2::5",), "2001:db8:1:2::/64"),
        ("10.1.1.1", ("unknown",), "10.1.1.1"),
        ("10.1.1.1", ("203.0.113.9, _hidden",), "10.1.1.1"),
        ("10.1.1.1", ("", " , "), "10.1.1.1"),
        ("::1", ("203.0.113.9",), "203.0.113.9"),
        ("::ffff:10.1.1.1", ("::ffff:203.0.113.9",), "203.0.113.9"),
        ("2001:db8::1", ("203.0.113.9",), "2001:db8::/64"),  # whoever has one has all of them
        (None, ("203.0.113.9",), ""),
        ("unix", (), ""),
    ],
)
async def test_an_address(client: str | None, forwarded: tuple[str, ...], name: str) -> None:
    assert caller(client, *forwarded) == Caller(name)


async def test_a_key_that_was_checked_comes_before_any_address() -> None:
    credentials = Credentials.from_secrets(("a", "b  weight=3"), "user:x")
    names = {secret: str(credentials.caller(f"Bearer {secret}")) for secret in "ab"}
    for secret, weight in (("a", 1), ("b", 3)):
        found = caller("10.1.1.1", "203.0.113.9", key=names[secret], credentials=credentials)
        assert found == Caller(names[secret], weight, has_key=True)
    assert credentials.weight_of("nobody") == 1


@pytest.mark.parametrize("weight", ["0", "-1", "x", "", "1001", "1.5", "99999999999"])
def test_a_weight_that_is_none_is_refused(weight: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to 1000"):
        Credentials.from_secrets((f"key weight={weight}",), None)


def test_a_line_forgets_who_has_left() -> None:
    line = WaitingLine()
    for change in (2, -1, -1):
        line.change(Caller("a"), change, 10 * change)
    assert line.by_caller == {}
    assert line.total == (0, 0)
