"""Server-sent events as a client reads them; pushed in any pieces, no I/O. Knows nothing of what they say."""

from __future__ import annotations


class EventParser:
    """The data of server-sent events, pushed in any pieces; comments, names and ids are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def push(self, piece: bytes) -> list[bytes]:
        """Takes part of a stream and returns the data of the events it completes.

        Args:
            piece: of any length.
        """
        text = self._rest + piece
        if b"\r" in text:
            # A last \r may be the first half of \r\n: it waits for what follows.
            held = b"\r" if text.endswith(b"\r") else b""
            text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *lines, self._rest = text.split(b"\n")
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events
