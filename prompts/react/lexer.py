"""Cuts scaffolding into labels and text, and trims text, both piece by piece.

It exists to keep the one question "can this still become a label?" apart from what labels mean, which
is parser.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prompts.react.line_format import LABELS

_LONGEST_LABEL = max(map(len, LABELS))


@dataclass(frozen=True, slots=True)
class Label:
    """A word of the format, such as `Action:`."""

    text: str


class Lexer:
    """Finds labels at the very start of lines, in text that goes on after a label.

    Everything else is text, newlines included. Held back is only what a label may begin with.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._at_line_start = False

    def push(self, text: str) -> Iterator[Label | str]:
        """Takes the next piece; yields labels and text in order, for as long as the caller wants labels found."""
        self._rest += text
        while self._rest:
            if self._at_line_start:
                label = next((label for label in LABELS if self._rest.startswith(label)), None)
                if label is not None:
                    self._at_line_start = False
                    yield Label(self._take(len(label)))
                    continue
                beginning = self._rest[:_LONGEST_LABEL]
                if any(label.startswith(beginning) for label in LABELS):
                    return
            newline = self._rest.find("\n")
            self._at_line_start = newline >= 0
            yield self._take(newline + 1 if newline >= 0 else len(self._rest))

    def flush(self) -> str:
        """Returns the rest as text: what was held back, or not yet looked at."""
        return self._take(len(self._rest))

    def _take(self, length: int) -> str:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


class Trimmer:
    """Strips whitespace around a text that comes in pieces; the whitespace inside it stays."""

    def __init__(self) -> None:
        self._held = ""
        self._has_begun = False

    def push(self, text: str) -> str:
        """Takes the next piece; returns what is not trailing whitespace so far."""
        if not self._has_begun:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._held += text
            return ""
        shown = self._held + body
        self._held = text[len(body) :]
        self._has_begun = True
        return shown
