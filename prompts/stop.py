"""Finds stop strings in streamed text.

A stop string may span any number of tokens and chunks, and no text should be held back longer than necessary. This
file knows characters, not tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple


class _Stop(NamedTuple):
    """A stop string with its KMP failure table (see `_borders`)."""

    text: str
    borders: array[int]


class StopStrings:
    """The prepared stop strings of a request, shared by all of its choices.

    Takes two numbers a character and is never changed.

    Args:
        stops: none may be empty.

    Attributes:
        first_characters: text without any of these cannot contain or begin a stop string.

    Raises:
        ValueError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self.stops = [_Stop(stop, _borders(stop)) for stop in stops]
        self.first_characters = frozenset(stop[0] for stop in stops)


class StopMatcher:
    """Passes text through up to the first stop string.

    The match that ends first wins; among matches that end at the same character, the longest. Only the longest
    suffix of the text that may begin a stop string is held back. Each stop string takes time linear in the text,
    whatever its length (Knuth, Morris and Pratt, 1977).

    Args:
        include_stop: pass the stop string itself through too; nothing is held back then.

    Attributes:
        matched: the stop string that was found, or None.
        held: the text held back: a proper prefix of some stop string, or empty.
    """

    def __init__(self, strings: StopStrings, include_stop: bool = False) -> None:
        self._strings = strings
        self._include_stop = include_stop
        # For each stop string, how many of its characters the text so far ends with.
        self._lengths = [0] * len(strings.stops)
        self.held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Processes the next piece of text.

        Returns:
            The text that may be shown now; empty once a stop string was found.
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
            # Only an earlier match, or a longer one that ends at the same character, replaces the one found so far.
            if found and (found < end or self.matched is None or length > len(self.matched)):
                end, self.matched = found, stop.text
        pending = self.held + text[:end]
        if self.matched is not None:
            self.held = ""
            return pending if self._include_stop else pending[: len(pending) - len(self.matched)]
        num_held = 0 if self._include_stop else max(lengths)
        self.held = pending[len(pending) - num_held :]
        return pending[: len(pending) - num_held]

    def flush(self) -> str:
        """Ends the text and returns what was held back."""
        held, self.held = self.held, ""
        self._lengths = [0] * len(self._lengths)
        return held


def _borders(stop: str) -> array[int]:
    """Returns, for each n, the length of the longest proper suffix of `stop[: n + 1]` that is also its prefix."""
    borders = array("I", [0])
    length = 0
    for character in stop[1:]:
        while length and stop[length] != character:
            length = borders[length - 1]
        length += stop[length] == character
        borders.append(length)
    return borders


def _advance(stop: _Stop, length: int, text: str, end: int) -> tuple[int, int]:
    """Advances the search for one stop string.

    Args:
        length: how many characters of the stop string the earlier text ends with.
        text: the new text.
        end: stop reading at this index.

    Returns:
        The new length, and the index just after the stop string in `text`; 0 if it does not end there.
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
