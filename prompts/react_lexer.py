"""Cuts a ReAct reply into labels and text, and trims text, both piece by piece.

It exists to keep the one question "can this still become a label?" apart from what labels mean, which
is react_parser.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from prompts.react import FINAL_ANSWER, LABELS


@dataclass(frozen=True, slots=True)
class Label:
    """A word of the format, such as `Action:`."""

    text: str


class Lexer:
    """Finds labels at the start of lines.

    A label stands at the very start of its line; at the start of the reply and after another label,
    whitespace may come before it. Everything else is text, newlines included. Held back is only what
    a label may begin with.
    """

    def __init__(self) -> None:
        self._held = ""
        self._at_line_start = True
        self._after_label = True

    def push(self, text: str) -> list[Label | str]:
        """Takes the next piece; returns labels and text in order."""
        text = self._held + text
        self._held = ""
        pieces: list[Label | str] = []
        position = 0
        while position < len(text):
            if self._at_line_start:
                label = next((label for label in LABELS if text.startswith(label, position)), None)
                if label is not None:
                    pieces.append(Label(label))
                    position += len(label)
                    self._after_label = True
                    continue
                rest = text[position : position + len(FINAL_ANSWER)]
                if any(label.startswith(rest) for label in LABELS):
                    self._held = rest
                    break
            end = self._end_of_text(text, position)
            pieces.append(text[position:end])
            position = end
        return pieces

    def flush(self) -> str:
        """Ends the text; returns what was held back in vain."""
        held, self._held = self._held, ""
        return held

    def _end_of_text(self, text: str, start: int) -> int:
        """Where the text from `start` on must be looked at again for a label."""
        if self._after_label:
            end = len(text) - len(text[start:].lstrip())
            if end > start:
                return end
            self._after_label = False
        newline = text.find("\n", start)
        self._at_line_start = newline >= 0
        return newline + 1 if newline >= 0 else len(text)


class Trimmer:
    """Strips whitespace around a text that comes in pieces; the whitespace inside it stays.

    Args:
        before: put in front of the text, if there is any text.

    Attributes:
        has_begun: whether there was any text but whitespace.
    """

    def __init__(self, before: str = "") -> None:
        self._held = before
        self.has_begun = False

    def push(self, text: str) -> str:
        """Takes the next piece; returns what is not trailing whitespace so far."""
        if not self.has_begun:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            # Whitespace right after `before` was just dropped, so this only ever adds inner whitespace.
            self._held += text
            return ""
        shown = self._held + body
        self._held = text[len(body) :]
        self.has_begun = True
        return shown
