"""What a reply says, piece by piece, in whatever form the model wrote it: text for the client, thoughts, calls.

Readers of replies make events, one for each format of tools; whoever writes replies knows nothing else of a format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from prompts.messages import FunctionCall


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the client."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The thought before a final answer, whole; not for the client."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call's arguments are complete, or the reply is over."""


Event = Content | Thought | CallStart | CallArguments | CallEnd


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A whole reply.

    Args:
        content: None if the reply is a call with no text at all; "" if it is simply empty.
        calls: at most one from these models.
    """

    content: str | None
    calls: tuple[FunctionCall, ...]


def fold(events: Iterable[Event]) -> ParsedReply:
    """Joins events, of any pieces, to the whole reply."""
    content = ""
    calls: list[FunctionCall] = []
    for event in events:
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, CallStart):
            calls.append(FunctionCall(event.name, ""))
        elif isinstance(event, CallArguments):
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + event.text)
    return ParsedReply(None if calls and not content else content, tuple(calls))
