"""Finds the bytes of the text that each generated token stands for, when text is held back, cut, or broken.

A token's log-probability must reach the client with the token's text: not before it (the text may still turn
out to be a stop string), not without it, and not at all if the text is cut off. Positions are counted in
characters of the decoded text, as the detokenizer shows it.
"""

from __future__ import annotations

import codecs
from collections import deque
from typing import NamedTuple

from model.contract.messages import TokenLogprob


class TokenEntry(NamedTuple):
    """A token as it is reported.

    Attributes:
        shown: its bytes that are in the text; None for a token that ended the reply and is not shown.
    """

    token_id: int
    shown: bytes | None
    logprob: TokenLogprob


class _Pending(NamedTuple):
    entry: TokenEntry
    start: int  # index of the character its first byte belongs to
    end: int  # number of characters that must be out before all of its bytes are
    state: bytes  # unfinished bytes before it


class TokenAligner:
    """Holds tokens until their text is out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_chars = 0
        self._pending: deque[_Pending] = deque()

    def push(self, token_id: int, token_bytes: bytes | None, logprob: TokenLogprob) -> None:
        """Takes a generated token; without bytes, an ending token that is not shown."""
        state = self._decoder.getstate()[0]
        start = self._num_chars
        self._num_chars += len(self._decoder.decode(token_bytes or b""))
        unfinished = bool(self._decoder.getstate()[0]) and bool(token_bytes)
        entry = TokenEntry(token_id, token_bytes, logprob)
        self._pending.append(_Pending(entry, start, self._num_chars + unfinished, state))

    def release(self, num_chars_out: int) -> list[TokenEntry]:
        """Returns the tokens whose text is entirely out.

        Args:
            num_chars_out: characters shown to the client since the beginning.
        """
        released = []
        while self._pending and self._pending[0].end <= num_chars_out:
            released.append(self._pending.popleft().entry)
        return released

    def finish(self, num_chars_out: int) -> list[TokenEntry]:
        """Ends the text; returns the tokens left whose text is out, the last one cut if only part of it is."""
        released = self.release(num_chars_out)
        if self._pending and self._pending[0].start < num_chars_out:
            cut = self._pending[0]
            released.append(cut.entry._replace(shown=_cut(cut, num_chars_out)))
        self._pending.clear()
        return released


def _cut(token: _Pending, num_chars_out: int) -> bytes:
    """Returns the token's bytes that belong to characters before `num_chars_out`."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.setstate((token.state, 0))
    num_chars = token.start
    token_bytes = token.entry.shown or b""
    for index in range(len(token_bytes)):
        num_chars += len(decoder.decode(token_bytes[index : index + 1]))
        owner = num_chars if decoder.getstate()[0] else num_chars - 1
        if owner >= num_chars_out:
            return token_bytes[:index]
    return token_bytes
