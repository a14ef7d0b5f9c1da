"""How conversations find the replica that has their start in its cache.

The start of a conversation, up to its first question, determines an order of the replicas (rendezvous hashing): all
fronts agree on it without asking anybody, all turns of a conversation go to the same replica, and when a replica is
added or lost only its own share moves.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Enough to tell conversations apart, and little enough to be hashed beside others' streams.
_MAX_START_CHARS = 4096
# Larger bodies are not parsed here; their first bytes stand for them.
_MAX_PARSED_BYTES = 256 << 10


def routing_key(body: bytes) -> str:
    """Returns a hash of the start of a request's prompt, which is the same for all turns of a conversation.

    Args:
        body: body of a request to any generating route.
    """
    start: object = None
    if len(body) <= _MAX_PARSED_BYTES:
        try:
            start = _start(json.loads(body))
        except (ValueError, RecursionError):
            start = None
    data = body[:_MAX_START_CHARS] if start is None else json.dumps(start)[:_MAX_START_CHARS].encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _start(request: Any) -> object:
    """Returns a request's prompt up to its first question, in any API; None where it has no prompt."""
    if not isinstance(request, dict):
        return None
    head = [request.get("system"), request.get("instructions")]
    for name in ("messages", "input"):
        turns = request.get(name)
        if isinstance(turns, str):
            return [*head, turns]
        if isinstance(turns, list) and turns:
            roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
            first = roles.index("user") if "user" in roles else 0
            return [*head, [turn.get("content") if isinstance(turn, dict) else None for turn in turns[: first + 1]]]
    return request.get("prompt")


def rank(key: str, names: list[str]) -> list[str]:
    """Returns the names in the order in which they are tried for a key."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest())
