"""Who sent a request: callers are told apart by the key that let them in, else by their address.

What the engine shares out, the queue, quotas and the prefix cache all go by the same caller.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from server.gates.credentials import Credentials

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Whoever has one IPv6 address has all of its network.
_IPV6_PREFIX = 64


class Caller(NamedTuple):
    """One with whom the others share.

    Attributes:
        name: told apart by it; of a key its hash.
        weight: its part when there is not enough for all.
        has_key: whether a key let it in.
    """

    name: str
    weight: int = 1
    has_key: bool = False

    @property
    def owner(self) -> str:
        """The owner of what it stores: its key; without keys all callers are one owner, named by the empty text."""
        return self.name if self.has_key else ""


NOBODY = Caller("")


class Waiting(NamedTuple):
    """What waits for a first token.

    Attributes:
        num_requests: HTTP requests.
        num_tokens: of prompts; also those that a request has left when its first prompt has begun.
    """

    num_requests: int = 0
    num_tokens: int = 0


class WaitingLine:
    """Counts what waits.

    Attributes:
        total: of all callers.
        by_caller: of each who has any.
    """

    def __init__(self) -> None:
        self.total = Waiting()
        self.by_caller: dict[Caller, Waiting] = {}

    def change(self, caller: Caller, num_requests: int, num_tokens: int) -> None:
        """Takes so many in, or with negative numbers out."""
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
        key: the name of the key that lets it in.
        credentials: know the weights of keys.
        trusted_proxies: whose `X-Forwarded-For` is believed; anybody could write one.
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
    """Returns the nearest address that is no trusted proxy's: anybody may have written what stands left of it."""
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
