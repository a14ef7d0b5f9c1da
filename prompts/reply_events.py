"""Events of a parsed reply: text for the client, thoughts, calls.

Each tool format's parser emits these events; the code that writes replies knows nothing else about tool formats.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the client."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The whole thought before a final answer; not shown to the client."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The start of a call."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of the current call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of a call: its arguments are complete, or the reply is over."""


Event = Content | Thought | CallStart | CallArguments | CallEnd
