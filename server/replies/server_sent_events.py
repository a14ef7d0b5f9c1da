"""Writes server-sent events: OpenAI's chunks are nothing but data, the events of other APIs have names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.wire.errors import dump_json

DONE_EVENT = b"data: [DONE]\n\n"


def data_event(data: Mapping[str, Any]) -> bytes:
    """Returns an event without a name."""
    return b"data: " + dump_json(data) + b"\n\n"


def named_event(data: Mapping[str, Any]) -> bytes:
    """Returns an event whose name is the `type` of its data."""
    return b"event: " + str(data["type"]).encode() + b"\n" + data_event(data)
