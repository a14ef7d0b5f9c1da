"""The bytes of a conversation and the tokens that they belong to."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from model.contract.tokenizer import Tokenizer

END = b"<|im_end|>"
_ENGLISH = re.compile(rb"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
Place = tuple[int, int]  # first byte, and one past the last


class ConversationText:
    """A conversation as bytes, with the token of each byte."""

    def __init__(self, ids: Sequence[int], tokenizer: Tokenizer) -> None:
        pieces = [_bytes_of(token, tokenizer) for token in ids]
        self.ids = ids
        self.bytes = b"".join(pieces)
        self.words = [word.strip().lower() for word in _whole_characters(pieces)]
        self.starts = [0]
        for piece in pieces[:-1]:
            self.starts.append(self.starts[-1] + len(piece))
        for word in _ENGLISH.finditer(self.bytes):  # a word of several tokens is known at its last token
            last = self.token_at(word.end() - 1)
            if self.starts[last] + len(pieces[last]) == word.end():
                self.words[last] = word[0].decode().lower()

    def token_at(self, place: int) -> int:
        """Returns the token of a byte."""
        return bisect_right(self.starts, place) - 1

    def copies(self, word: bytes, token: int, within: Place) -> list[int]:
        """Returns the earlier tokens, within some bytes, where the word begins and that equal the given token."""
        found, at = [], self.bytes.find(word, *within)
        is_number = word[-1:].isdigit()
        while at >= 0:
            after = self.bytes[at + len(word) : at + len(word) + 1]
            before = self.bytes[at - 1 : at]
            if not (is_number and (after.isdigit() or before.isdigit())):
                source = self.token_at(at)
                if source < token and self.ids[source] == self.ids[token]:
                    found.append(source)
            at = self.bytes.find(word, at + 1, within[1])
        return found


def _whole_characters(pieces: list[bytes]) -> Iterator[str]:
    """Decodes the pieces; a character that spans pieces belongs to the last of them."""
    pending = b""
    for piece in pieces:
        pending += piece
        try:
            yield pending.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                yield ""
                continue
            yield pending.decode(errors="ignore")
        pending = b""


def _bytes_of(token: int, tokenizer: Tokenizer) -> bytes:
    if token == tokenizer.im_end_id:
        return END
    return b"<|im_start|>" if token == tokenizer.im_start_id else tokenizer.token_bytes(token)
