"""Parses a ReAct reply while it is generated.

Clients see calls and answers, never the scaffolding (`Thought:`, `Action:`, `Action Input:`, `Observation:`, `Final
Answer:`). An unstreamed reply is folded from the same events. The parser knows text only: no tokens, no wire, and
only the names of tools.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum, auto

from prompts.messages import is_json
from prompts.react.lexer import Label, Lexer, Trimmer
from prompts.react.line_format import ACTION, ACTION_INPUT, FINAL_ANSWER, OBSERVATION, SPACE, THOUGHT, openings
from prompts.reply_events import CallArguments, CallEnd, CallStart, Content, Event, Thought


class _State(Enum):
    BEGIN = auto()  # undecided whether the turn is scaffolding
    TEXT = auto()  # for the client
    THOUGHT = auto()
    NAME = auto()  # the tool's name
    ARGUMENTS = auto()
    DONE = auto()


class ReActParser:
    """Turns a streamed reply into events, by the rule of line_format.py.

    A reply that is not scaffolding is content, verbatim; so is the text after `Final Answer:` and whitespace. The
    folded events equal what the published parser of complete texts returns, except for these cases:

    - The first conclusion holds: a call ends at any label after its arguments, and an answer runs to the end. The
      published parser takes the last of several final answers; a stream cannot take back the first.
    - An `Observation:` without a call before it also ends the reply: the model talks to itself.
    - If a reply ends in a thought, the thought is its content. If it is cut off in a call before `Action Input:`, the
      thought before the call is its content. If it ends there by itself it is not a call, but content, verbatim.

    As in the published parser, a second `Thought:` inside a thought is part of the thought. Thoughts and arguments
    are stripped.

    Text that may still be scaffolding is held back. So are thoughts: only at its end is it known whether a thought is
    content (a call follows) or not shown (a final answer follows).

    Args:
        opening: the part of the step that the prompt already contains (`RenderedPrompt.opening`). Its text is not
            content of the reply. A call that it begins belongs to the reply; its events come with the first push.
        tool_names: the callable tools.
        text_tools: those whose input is text or code, not JSON. It ends at `Observation:` only, and may be empty.

    Attributes:
            unfinished_call: after `flush`, whether the reply ended in a call, at its name or before its arguments were
                complete JSON.
    """

    def __init__(self, opening: str = "", tool_names: Sequence[str] = (), text_tools: Collection[str] = ()) -> None:
        self._text_tools = text_tools
        self._takes_text = False
        self._openings = openings(tool_names)
        self._state = _State.BEGIN
        self._lexer = Lexer()
        self._events: list[Event] = []
        self._space: list[str] = []
        self._word = ""
        self._step = ""
        self._thought = ""
        self._name = ""
        self._arguments = ""
        self._trimmer = Trimmer()
        self._skips_space = False
        self.unfinished_call = False
        if opening:
            self._read(opening)
            self._events = [event for event in self._events if not isinstance(event, Content | Thought)]
            self._step = self._thought = ""

    @property
    def done(self) -> bool:
        """Whether the rest of the reply does not matter, so that generation may end."""
        return self._state is _State.DONE

    def push(self, text: str) -> list[Event]:
        """Parses the next piece of the reply and returns the events that are certain now."""
        self._read(text)
        return self._take()

    def flush(self, *, is_cut: bool = False) -> list[Event]:
        """Ends the reply and returns the events that were held back.

        Args:
            is_cut: the reply was cut off, so an unfinished step is dropped instead of shown as text.
        """
        rest = self._lexer.flush()
        if self._state is _State.BEGIN:
            self._show("".join([*self._space, self._word]))
        elif self._state is _State.THOUGHT:
            self._show((self._thought if is_cut else self._thought + rest).strip())
        elif self._state is _State.NAME:
            self.unfinished_call = True
            self._show(self._thought.strip() if is_cut else self._step)
        elif self._state is _State.ARGUMENTS:
            if self._takes_text or not is_json(self._arguments):
                self._add_arguments(rest)
            self.unfinished_call = not self._takes_text and not is_json(self._arguments)
            self._end_call()
        self._state = _State.DONE
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _read(self, text: str) -> None:
        if self._state is _State.BEGIN:
            self._begin(text)
        elif self._state is _State.TEXT:
            self._show(text)
        elif self._state is not _State.DONE:
            self._read_step(text)

    def _begin(self, text: str) -> None:
        """Decides whether the turn is scaffolding, as soon as that is certain."""
        word = text if self._word else text.lstrip(SPACE)
        self._space.append(text[: len(text) - len(word)])
        self._word += word
        if not self._word.startswith(self._openings):
            if not any(opening.startswith(self._word) for opening in self._openings):
                self._state = _State.TEXT
                self._show("".join([*self._space, self._word]))
            return
        self._state = _State.THOUGHT if self._word.startswith(THOUGHT) else _State.NAME
        label = THOUGHT if self._state is _State.THOUGHT else ACTION
        self._step = "".join([*self._space, label])
        self._read_step(self._word.removeprefix(label))

    def _read_step(self, text: str) -> None:
        if self._state is not _State.ARGUMENTS:
            self._step += text
        for piece in self._lexer.push(text):
            if isinstance(piece, Label):
                self._on_label(piece.text)
            else:
                self._on_text(piece)
            if self._state is _State.TEXT:
                self._show(self._lexer.flush())
            if self._state is _State.DONE:
                return

    def _on_text(self, text: str) -> None:
        if self._state is _State.THOUGHT:
            self._thought += text
        elif self._state is _State.NAME:
            self._name += text
        else:
            self._add_arguments(text)

    def _on_label(self, label: str) -> None:
        if self._state is _State.ARGUMENTS:
            if self._takes_text and label != OBSERVATION:
                self._add_arguments(label)
            else:
                self._end_call()
            return
        if self._state is _State.NAME:
            if label == ACTION_INPUT and self._name.strip():
                self._start_call(self._name.strip().splitlines()[0].rstrip())
                return
            self._thought += ACTION + self._name
            self._state = _State.THOUGHT
        if label == ACTION:
            self._name = ""
            self._state = _State.NAME
        elif label == FINAL_ANSWER:
            self._start_answer()
        elif label == OBSERVATION:
            self._show(self._thought.strip())
            self._state = _State.DONE
        else:
            self._thought += label

    def _start_call(self, name: str) -> None:
        self._show(self._thought.strip())
        self._events.append(CallStart(name))
        self._takes_text = name in self._text_tools
        self._state = _State.ARGUMENTS

    def _add_arguments(self, text: str) -> None:
        piece = self._trimmer.push(text)
        if piece:
            self._arguments += piece
            self._emit(CallArguments(piece))

    def _end_call(self) -> None:
        if not self._arguments and not self._takes_text:
            self._emit(CallArguments("{}"))
        self._events.append(CallEnd())
        self._state = _State.DONE

    def _start_answer(self) -> None:
        if self._thought.strip():
            self._events.append(Thought(self._thought.strip()))
        self._skips_space = True
        self._state = _State.TEXT

    def _show(self, text: str) -> None:
        if self._skips_space:
            text = text.lstrip(SPACE)
            self._skips_space = not text
        if text:
            self._emit(Content(text))

    def _emit(self, event: Content | CallArguments) -> None:
        """Appends an event, merging text with an event of the same kind right before it."""
        last = self._events[-1] if self._events else None
        if isinstance(last, Content | CallArguments) and type(last) is type(event):
            event = type(event)(last.text + event.text)
            self._events.pop()
        self._events.append(event)
