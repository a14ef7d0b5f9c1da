"""Who sent a request: callers are told apart by the key that let them in, else by their address.

The engine's shares, the queue, rate limits and the prefix cache all go by the same caller.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from server.gates.credentials import Credentials

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Whoever has one IPv6 address can use all of its /64 network.
_IPV6_PREFIX = 64


class Caller(NamedTuple):
    """One of those who share the server.

    Attributes:
        name: hash of the key, or the address.
        weight: its share, relative to the others', when there is not enough for all.
        has_key: whether a key let it in.
    """

    name: str
    weight: int = 1
    has_key: bool = False

    @property
    def owner(self) -> str:
        """The owner of what it stores: its key. Without keys all callers are one owner, named by the empty text."""
        return self.name if self.has_key else ""


NOBODY = Caller("")
# Who sent the request being served, for work that is shared out fairly far below its route.
caller_var: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


class CallerCounts(Counter[Caller]):
    """How much of something each caller has; those who have none of it are not listed."""

    def change(self, caller: Caller, by: int) -> None:
        """Gives a caller more, or with a negative number less."""
        self[caller] += by
        if not self[caller]:
            del self[caller]

    def may_have_more(self, caller: Caller, limit: int) -> bool:
        """Whether a caller may have one more of `limit`: while there are any, or with less than its share of them.

        So nobody waits for those who have most, and with k callers at most 1 + 1/2 + ... + 1/k times the limit is had.
        """
        if self.total() < limit:
            return True
        share = caller.weight / sum(other.weight for other in {*self, caller})
        return bool(self[caller] + 1 <= share * limit)

    @contextmanager
    def one_more(self, caller: Caller) -> Iterator[None]:
        """Gives a caller one more for as long as the context lasts."""
        self.change(caller, 1)
        try:
            yield
        finally:
            self.change(caller, -1)


class Waiting(NamedTuple):
    """What waits for a first token.

    Attributes:
        num_requests: HTTP requests none of whose prompts has begun.
        num_tokens: tokens of the prompts that have not begun, also where a request's first prompt has.
    """

    num_requests: int = 0
    num_tokens: int = 0


class WaitingLine:
    """Counts what waits, in `total` and `by_caller`; callers for whom nothing waits are not listed."""

    def __init__(self) -> None:
        self.total = Waiting()
        self.by_caller: dict[Caller, Waiting] = {}

    def change(self, caller: Caller, num_requests: int, num_tokens: int) -> None:
        """Adds so many; negative numbers take away."""
        self.total = Waiting(self.total.num_requests + num_requests, self.total.num_tokens + num_tokens)
        before = self.by_caller.pop(caller, Waiting())
        after = Waiting(before.num_requests + num_requests, before.num_tokens + num_tokens)
        if after != Waiting():
            self.by_caller[caller] = after


def caller_of(scope: Scope) -> Caller:
    """Returns who sent a request."""
    caller = scope.get("state", {}).get("caller", NOBODY)
    assert isinstance(caller, Caller)
    return caller


def find_caller(
    scope: Scope, key: str | None, credentials: Credentials, trusted_proxies: tuple[Network, ...]
) -> Caller:
    """Finds out who sends a request.

    Args:
        key: name of the key that lets it in; None where it needs none.
        trusted_proxies: networks of proxies whose `X-Forwarded-For` is believed; anybody could write one.
    """
    if key is not None:
        return Caller(key, credentials.weight_of(key), has_key=True)
    client = scope.get("client")
    peer = _address(client[0]) if client else None
    if peer is None:
        return NOBODY
    forwarded = Headers(scope=scope).getlist("x-forwarded-for")
    return Caller(_name(_sender(peer, ",".join(forwarded), trusted_proxies)))


def _sender(peer: Address, forwarded: str, trusted_proxies: tuple[Network, ...]) -> Address:
    """Returns the nearest address that is not a trusted proxy's: anybody may have written what stands left of it."""
    sender = peer
    for entry in reversed(forwarded.split(",")):
        if not any(sender in network for network in trusted_proxies):
            break
        address = _address(entry.strip())
        if address is None:
            break
        sender = address
    return sender


def _address(text: str) -> Address | None:
    """Reads an address as proxies write them: with a port or without."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _name(address: Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
