"""Splits streamed ReAct text into labels and text, and trims streamed text.

The lexer only decides whether text can still become a label; parser.py knows what labels mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prompts.react.line_format import LABELS

_LONGEST_LABEL = max(map(len, LABELS))


@dataclass(frozen=True, slots=True)
class Label:
    """A label of the format, such as `Action:`."""

    text: str


class Lexer:
    """Finds labels at the start of lines. Its input begins after a label, in the middle of a line.

    Everything else is text, newlines included. Only text that may begin a label is held back.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._at_line_start = False

    def push(self, text: str) -> Iterator[Label | str]:
        """Takes the next piece; yields labels and text in order. Callers that want the rest unsplit stop early."""
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
        """Returns the rest as text: what was held back, or not yet split."""
        return self._take(len(self._rest))

    def _take(self, length: int) -> str:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken


class Trimmer:
    """Strips leading and trailing whitespace of streamed text."""

    def __init__(self) -> None:
        self._held = ""
        self._has_begun = False

    def push(self, text: str) -> str:
        """Takes the next piece; returns the text without whitespace that may turn out to be trailing."""
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
