"""Finds stop strings in text that arrives in pieces.

It exists because a stop string may lie across any number of tokens and chunks, and because text held
back too long is text the client waits for. It knows characters only, no tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of some stop strings."""

    depth: int
    next: dict[str, _Node] = field(default_factory=dict)
    # The longest proper suffix of this prefix that is itself a prefix of a stop string; None for the root.
    fallback: _Node | None = None
    # The longest stop string that ends here.
    stop: str | None = None


class StopMatcher:
    """Lets text through up to the first stop string.

    The match that ends first wins; of those that end at the same character the longest. Held back is
    only the longest end of the text that a stop string may begin with, so text flows as if there were no stop strings
    wherever none begins. Time is linear in the text, whatever the number and length of stop strings
    (Aho and Corasick's automaton, 1975).

    Args:
        stops: strings to stop at, none of them empty.
        include_stop: let the stop string itself through too. Nothing is held back then.

    Attributes:
        matched: the stop string found, or None.

    Raises:
        ValueError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._root = _build(stops)
        self._node = self._root
        self._include_stop = include_stop
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
        node = self._node
        root = self._root
        if node is root and root.next.keys().isdisjoint(text):
            return text
        for index, character in enumerate(text):
            while character not in node.next and node.fallback is not None:
                node = node.fallback
            node = node.next.get(character, root)
            if node.stop is not None:
                return self._end(node.stop, self._held + text[: index + 1])
        self._node = node
        pending = self._held + text
        num_held = 0 if self._include_stop else node.depth
        self._held = pending[len(pending) - num_held :]
        return pending[: len(pending) - num_held]

    def flush(self) -> str:
        """Ends the text: returns what was held back in vain."""
        held, self._held = self._held, ""
        self._node = self._root
        return held

    def _end(self, stop: str, text: str) -> str:
        self.matched = stop
        self._held = ""
        return text if self._include_stop else text[: len(text) - len(stop)]


def _build(stops: Sequence[str]) -> _Node:
    """Builds the automaton: a tree of all prefixes, each with its fallback and the stop string it ends in."""
    root = _Node(0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.next.setdefault(character, _Node(node.depth + 1))
        node.stop = stop
    queue = deque([root])
    while queue:
        parent = queue.popleft()
        for character, node in parent.next.items():
            fallback = parent.fallback
            while fallback is not None and character not in fallback.next:
                fallback = fallback.fallback
            node.fallback = root if fallback is None else fallback.next[character]
            # A node is visited after all shorter prefixes, so the fallback's stop is final; ours is longer.
            node.stop = node.stop or node.fallback.stop
            queue.append(node)
    return root
