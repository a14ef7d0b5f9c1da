"""Reads a reply in ReAct form while it is being generated.

It exists so that a client sees calls and answers, never the scaffolding (`Thought:`, `Action:`,
`Action Input:`, `Observation:`, `Final Answer:`), streamed or not: the unstreamed reply is `fold` of
the same events. It knows text only: no tokens, no wire, no list of tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto

from prompts.messages import FunctionCall
from prompts.react import ACTION, ACTION_INPUT, FINAL_ANSWER, OBSERVATION, THOUGHT
from prompts.react_lexer import Label, Lexer, Trimmer


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


class _State(Enum):
    PLAIN = auto()  # text that follows no ReAct shape
    PLAIN_ACTION = auto()  # in plain text, a line that is a call if `Action Input:` comes next
    THOUGHT = auto()
    ACTION = auto()  # the tool's name
    SKIPPED = auto()  # text of no step: an input for no tool
    ARGUMENTS = auto()
    ANSWER = auto()
    DONE = auto()


class ReActParser:
    """Turns a reply into events, piece by piece.

    Where the published reader of whole texts is sane, the folded events are what it returns. It is not
    where it shows scaffolding to the client or lets the model talk to itself, and differs in this:

    - `Final Answer:` counts as such also where no newline or no space is around it.
    - The first conclusion holds. After a final answer or after a call's arguments, any line that begins
      with a label ends the reading (`done`): a second action, a made-up Observation, a second final
      answer (of which the published reader takes the last, a thing no stream can take back).
    - A reply that ends in a thought, or in a call before its `Action Input:`, is that thought as content.
    - In plain text, a line `Action: ...` is a call only if `Action Input:` is the next line; if not, the
      line is the client's text.
    - Plain text is shown at once, so it stays even if a thought or a final answer follows it, which
      then stands on a new line. The published reader drops the text before.
    - An `Action Input:` that names no tool is dropped; so is a `Final Answer:` that another label follows at once.

    As the published reader has it, a second `Thought:` inside a thought is the thought's text. Texts have
    no whitespace around them, only a continued answer keeps that between it and what it goes on from.

    Held back is what may still be scaffolding or trailing whitespace, and thoughts: only at its end is it
    known whether a thought is content (a call follows) or not shown (a final answer does).

    Args:
        initial: what of the step stands in the prompt already (`ReActPrompt.opening`). Its text is not
            content of the reply; a call it begins is a call of the reply, and comes with the first push.
        allow_calls: False makes a call no call: its thought is the content and the reading ends.
    """

    def __init__(self, initial: str = "", *, allow_calls: bool = True) -> None:
        self._allow_calls = allow_calls
        self._state = _State.PLAIN
        self._lexer = Lexer()
        self._events: list[Event] = []
        self._content = Trimmer()
        self._has_content = False
        self._thought = ""
        self._name = ""
        self._arguments = ""
        self._arguments_trimmer = Trimmer()
        self._unfinished_call = False
        self._read(initial)
        self._events = [event for event in self._events if not isinstance(event, Content | Thought)]
        self._thought = ""

    @property
    def done(self) -> bool:
        """Whether nothing that follows can matter, so that generation may end."""
        return self._state is _State.DONE

    @property
    def unfinished_call(self) -> bool:
        """After `flush`: whether the reply broke off in a call, at its name or before its arguments were JSON."""
        return self._unfinished_call

    def push(self, text: str) -> list[Event]:
        """Takes the next piece of the reply and returns what is known by it."""
        self._read(text)
        return self._take()

    def flush(self) -> list[Event]:
        """Ends the reply and returns what was held back."""
        rest = self._lexer.flush()
        if not self._is_cut_label():
            self._on_text(rest)
        if self._state is _State.PLAIN_ACTION:
            self._restore_action()
        elif self._state is _State.ARGUMENTS:
            self._unfinished_call = not _is_json(self._arguments)
            self._end_call()
        elif self._state is _State.ACTION:
            self._unfinished_call = True
        self._show_thought()
        self._state = _State.DONE
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _read(self, text: str) -> None:
        for piece in self._lexer.push(text):
            if isinstance(piece, Label):
                self._on_label(piece.text)
            else:
                self._on_text(piece)

    def _on_text(self, text: str) -> None:
        match self._state:
            case _State.PLAIN | _State.ANSWER:
                self._show(text)
            case _State.THOUGHT:
                self._thought += text
            case _State.ACTION:
                self._name += text
            case _State.PLAIN_ACTION:
                self._name += text
                if "\n" in self._name.strip():
                    self._restore_action()
            case _State.ARGUMENTS:
                self._add_arguments(text)
            case _State.SKIPPED | _State.DONE:
                pass

    def _on_label(self, label: str) -> None:
        if self._state is _State.PLAIN_ACTION and not (label == ACTION_INPUT and self._name.strip()):
            self._restore_action()
        elif self._state is _State.ARGUMENTS:
            self._end_call()
        elif self._state is _State.ANSWER:
            self._state = _State.DONE if self._content.has_begun else _State.SKIPPED
        if self._state is _State.DONE:
            return
        if label == OBSERVATION:
            self._show_thought()
            self._state = _State.DONE
        elif label == THOUGHT:
            if self._state is _State.THOUGHT:
                self._thought += label
            self._state = _State.THOUGHT
        elif label == FINAL_ANSWER:
            self._start_answer()
        elif label == ACTION:
            self._name = ""
            self._state = _State.PLAIN_ACTION if self._state is _State.PLAIN else _State.ACTION
        else:
            self._on_action_input()

    def _on_action_input(self) -> None:
        if self._state is _State.PLAIN:
            self._show(ACTION_INPUT)
        elif self._state in (_State.ACTION, _State.PLAIN_ACTION) and self._name.strip():
            self._start_call(self._name.strip().splitlines()[0].rstrip())
        else:
            self._state = _State.SKIPPED

    def _start_call(self, name: str) -> None:
        self._show_thought()
        if self._allow_calls:
            self._events.append(CallStart(name))
            self._state = _State.ARGUMENTS
        else:
            self._state = _State.DONE

    def _add_arguments(self, text: str) -> None:
        piece = self._arguments_trimmer.push(text)
        if piece:
            self._arguments += piece
            self._emit(CallArguments(piece))

    def _end_call(self) -> None:
        if not self._arguments:
            self._emit(CallArguments("{}"))
        self._events.append(CallEnd())
        self._state = _State.DONE

    def _start_answer(self) -> None:
        if self._thought.strip():
            self._events.append(Thought(self._thought.strip()))
        self._thought = ""
        self._start_section()
        self._state = _State.ANSWER

    def _show_thought(self) -> None:
        """A thought that no final answer followed is content."""
        if self._thought.strip():
            self._start_section()
            self._show(self._thought)
        self._thought = ""

    def _start_section(self) -> None:
        """What is shown next has its own line, without the whitespace around it."""
        self._content = Trimmer(before="\n" if self._has_content else "")

    def _show(self, text: str) -> None:
        shown = self._content.push(text)
        if shown:
            self._has_content = True
            self._emit(Content(shown))

    def _restore_action(self) -> None:
        """The line was no action but text."""
        self._state = _State.PLAIN
        self._show(ACTION + self._name)

    def _is_cut_label(self) -> bool:
        """Whether the beginning of a label at the very end is scaffolding that was cut off, not a short line."""
        if self._state is _State.ARGUMENTS:
            return _is_json(self._arguments)
        return self._state is _State.THOUGHT and bool(self._thought.strip())

    def _emit(self, event: Content | CallArguments) -> None:
        """Adds text to the events, as one with text of its kind right before it."""
        last = self._events[-1] if self._events else None
        if isinstance(last, Content | CallArguments) and type(last) is type(event):
            event = type(event)(last.text + event.text)
            self._events.pop()
        self._events.append(event)


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


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
        return True
    except (ValueError, RecursionError):
        return False
