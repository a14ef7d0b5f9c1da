"""Finds stop strings in text that arrives in pieces.

It exists because a stop string may lie across any number of tokens and chunks, and because text held
back too long is text the client waits for. It knows characters only, no tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple


class _Stop(NamedTuple):
    """A stop string, and for each of its beginnings how long the next shorter one is that ends it."""

    text: str
    borders: array[int]


class StopStrings:
    """The stop strings of a request, made ready once for all of its choices.

    What is kept is two numbers a character and never changes, so any number of choices may read it.

    Args:
        stops: strings to stop at, none of them empty.

    Attributes:
        first_characters: without one of them in it, a text can neither hold nor begin a stop string.

    Raises:
        ValueError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self.stops = [_Stop(stop, _borders(stop)) for stop in stops]
        self.first_characters = frozenset(stop[0] for stop in stops)


class StopMatcher:
    """Lets text through up to the first stop string.

    The match that ends first wins; of those that end at the same character the longest. Held back is
    only the longest end of the text that a stop string may begin with, so text flows as if there were no stop strings
    wherever none begins. Each stop string costs time linear in the text, however long it is (Knuth, Morris and
    Pratt, 1977).

    Args:
        strings: to stop at.
        include_stop: let the stop string itself through too. Nothing is held back then.

    Attributes:
        matched: the stop string found, or None.
    """

    def __init__(self, strings: StopStrings, include_stop: bool = False) -> None:
        self._strings = strings
        self._include_stop = include_stop
        # Of each stop string so many characters are the end of the text.
        self._lengths = [0] * len(strings.stops)
        self._held = ""
        self.matched: str | None = None

    @property
    def held(self) -> str:
        """Text not let through yet: always a proper prefix of some stop string, possibly empty."""
        return self._held

    def push(self, text: str) -> str:
        """Takes the next piece of text.

        Returns:
            What is safe to show now; nothing once a stop string was found.
        """
        if self.matched is not None:
            return ""
        lengths = self._lengths
        if not any(lengths) and self._strings.first_characters.isdisjoint(text):
            return text
        end = len(text)
        for number, stop in enumerate(self._strings.stops):
            length, found = _advance(stop, lengths[number], text, end)
            lengths[number] = length
            # A match can only lie before the ones found so far or end with them, where the longer one wins.
            if found and (found < end or self.matched is None or length > len(self.matched)):
                end, self.matched = found, stop.text
        pending = self._held + text[:end]
        if self.matched is not None:
            self._held = ""
            return pending if self._include_stop else pending[: len(pending) - len(self.matched)]
        num_held = 0 if self._include_stop else max(lengths)
        self._held = pending[len(pending) - num_held :]
        return pending[: len(pending) - num_held]

    def flush(self) -> str:
        """Ends the text: returns what was held back in vain."""
        held, self._held = self._held, ""
        self._lengths = [0] * len(self._lengths)
        return held


def _borders(stop: str) -> array[int]:
    """For each n the length of the longest proper suffix of `stop[: n + 1]` that is also a prefix of it."""
    borders = array("I", [0])
    length = 0
    for character in stop[1:]:
        while length and stop[length] != character:
            length = borders[length - 1]
        length += stop[length] == character
        borders.append(length)
    return borders


def _advance(stop: _Stop, length: int, text: str, end: int) -> tuple[int, int]:
    """Reads on.

    Args:
        stop: to look for.
        length: so many of its characters end the text before.
        text: what follows.
        end: read so far at most.

    Returns:
        The new length, and behind which character of `text` the stop string ends; 0 if it does not.
    """
    string, borders = stop
    for index in range(end):
        character = text[index]
        while length and string[length] != character:
            length = borders[length - 1]
        length += string[length] == character
        if length == len(string):
            return length, index + 1
    return length, 0
