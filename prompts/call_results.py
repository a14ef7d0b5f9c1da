"""Finds the call that each tool result answers, and orders a conversation into steps: each call with its results.

Clients answer calls in any order, reuse ids or send none. The ReAct format knows only one call after another, each
followed by its result.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from prompts.messages import FunctionCall, Message

# Where a call is: (index of its message, index among the calls of that message).
CallPlace = tuple[int, int]


class OpenCalls:
    """Tracks, message by message, which calls of a conversation still wait for a result.

    The n-th result with an id answers the n-th call with that id. If a later question reuses an id, calls since the
    last user message are answered first. A result that no call waits for belongs to the last call with its id; one
    that names no known id goes to the oldest call since the last user message that still waits.
    """

    def __init__(self) -> None:
        self._number = 0
        self._last: CallPlace | None = None  # the latest call since the last user message
        self._last_of: dict[str | None, CallPlace] = {}
        self._answered: set[CallPlace] = set()
        # Calls since the last user message, oldest first. Answered ones are dropped when they reach the front.
        self._waiting: deque[CallPlace] = deque()
        self._waiting_of: dict[str | None, deque[CallPlace]] = defaultdict(deque)
        # Unanswered calls from before the last user message.
        self._passed_of: dict[str | None, list[CallPlace]] = defaultdict(list)
        self.num_waiting = 0

    def knows(self, id: str) -> bool:
        """Whether an earlier call has this id."""
        return id in self._last_of

    def push(self, message: Message) -> CallPlace | None:
        """Reads the next message. Returns the call it answers, if it is a tool result."""
        number, self._number = self._number, self._number + 1
        if message.role == "user":
            self._pass_on()
        for index, call in enumerate(message.calls):
            self._last = self._last_of[call.id] = (number, index)
            self._waiting.append(self._last)
            self._waiting_of[call.id].append(self._last)
            self.num_waiting += 1
        return self._answer(message.tool_call_id) if message.role == "tool" else None

    def _answer(self, id: str | None) -> CallPlace | None:
        if id is None or not self.knows(id):
            waiting, passed, last = self._waiting, self._passed_of[None], self._last
        else:
            waiting, passed, last = self._waiting_of[id], self._passed_of[id], self._last_of[id]
        while waiting and waiting[0] in self._answered:
            waiting.popleft()
        if waiting:
            place = waiting.popleft()
            self.num_waiting -= 1
        elif passed:
            place = passed.pop()
        else:
            return last
        self._answered.add(place)
        return place

    def _pass_on(self) -> None:
        for id, places in self._waiting_of.items():
            self._passed_of[id] += [place for place in places if place not in self._answered]
        self._waiting.clear()
        self._waiting_of.clear()
        self._last = None
        self.num_waiting = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A call and its results.

    Attributes:
        thought: the assistant's text before the call.
        results: empty while the call waits for one.
    """

    thought: str
    call: FunctionCall
    results: tuple[str, ...]


def in_steps(messages: Sequence[Message]) -> list[Message | Step]:
    """Groups each call with its results, wherever they are; other messages keep their places.

    Assistant text between the results of one message becomes the thought before the call that is answered next. If a
    message has several calls and only some are answered, the others get an empty result. A result without a call
    stays a message.
    """
    open_calls = OpenCalls()
    owners = [open_calls.push(message) for message in messages]
    results_of: dict[CallPlace, list[int]] = defaultdict(list)
    for index, owner in enumerate(owners):
        if owner is not None:
            results_of[owner].append(index)
    answered = {owner[0] for owner in owners if owner is not None}
    last_text_before = _last_texts(messages)
    late: dict[int, CallPlace] = {}  # calls whose first result follows assistant text, by the index of that result
    said: list[str] = []
    steps: list[Message | Step] = []

    def add_step(place: CallPlace) -> None:
        number, index = place
        results = [messages[result].content for result in results_of[place]]
        if not results and number in answered:
            results = [""]
        steps.append(Step("\n".join(filter(None, said)), messages[number].calls[index], tuple(results)))
        said.clear()

    for index, message in enumerate(messages):
        if message.calls:
            said.append(message.content)
            for place in ((index, number) for number in range(len(message.calls))):
                first = results_of[place][0] if results_of[place] else index
                if last_text_before[first] > index:
                    late[first] = place
                else:
                    add_step(place)
        elif index in late:
            add_step(late.pop(index))
        elif owners[index] is not None:
            continue
        elif late and message.role == "assistant":
            said.append(message.content)
        else:
            steps.append(message)
    return steps


def _last_texts(messages: Sequence[Message]) -> list[int]:
    """Returns, for each message, the index of the last assistant text without calls before it in the turn, or -1."""
    last, lasts = -1, []
    for index, message in enumerate(messages):
        if message.role in ("system", "user"):
            last = -1
        lasts.append(last)
        if message.role == "assistant" and not message.calls:
            last = index
    return lasts
