"""A long JSON list, written down piece by piece.

Writing 43 MB of log-probabilities at once kept the event loop for two seconds, and as objects they took six times
as much memory as in JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from server.wire.errors import dump_json

# So many are written in a few milliseconds.
_ITEMS_AT_ONCE = 1 << 15


class JsonList:
    """A list that is kept as JSON from the start."""

    def __init__(self, items: Sequence[Any] = ()) -> None:
        self._pieces: list[bytes] = []
        self.extend(items)

    def extend(self, items: Sequence[Any]) -> None:
        """Appends items."""
        for start in range(0, len(items), _ITEMS_AT_ONCE):
            self._pieces.append(dump_json(items[start : start + _ITEMS_AT_ONCE])[1:-1])

    def whole(self) -> Any:
        """Returns what `dump_json` writes as the list, and what stands for the list until then."""
        return orjson.Fragment(b"[" + b",".join(self._pieces) + b"]")
