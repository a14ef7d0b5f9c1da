"""Which call a tool's result answers, and a conversation put in steps: each call with its results behind it.

It exists because clients answer calls in any order, reuse ids or send none, while the ReAct format knows only one
call after the other, each followed by its result.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from prompts.messages import FunctionCall, Message

# A call by its place: index of the message, index among the message's calls.
CallPlace = tuple[int, int]


class OpenCalls:
    """The calls of a conversation, read message by message, and which of them wait for a result.

    The n-th result of an id answers the n-th call that has it. Where ids come back in a later question, calls made
    since the last user message come first. A result beyond those that are waited for belongs to the last call of its
    id; one that names no call goes to the first call since the last user message that waits for one.
    """

    def __init__(self) -> None:
        self._number = 0
        self._last: CallPlace | None = None  # since the last user message
        self._last_of: dict[str | None, CallPlace] = {}
        self._answered: set[CallPlace] = set()
        # Since the last user message, oldest first; answered ones are dropped when they come to the front.
        self._waiting: deque[CallPlace] = deque()
        self._waiting_of: dict[str | None, deque[CallPlace]] = defaultdict(deque)
        # Before it.
        self._passed_of: dict[str | None, list[CallPlace]] = defaultdict(list)
        self.num_waiting = 0

    def knows(self, id: str) -> bool:
        """Whether an earlier call has this id."""
        return id in self._last_of

    def push(self, message: Message) -> CallPlace | None:
        """Takes the next message; returns the call that it answers, if it is the result of one."""
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
    """A call with what came of it.

    Attributes:
        thought: said before it.
        call: that was made.
        results: of the call; empty while it waits for one.
    """

    thought: str
    call: FunctionCall
    results: tuple[str, ...]


def in_steps(messages: Sequence[Message]) -> list[Message | Step]:
    """Puts each call together with its results, wherever those stand; other messages keep their places.

    What the assistant says between the results of one message is the thought before the call that is answered next.
    A call that is passed over while another of its message is answered has had an empty result. A result of no call
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
    late: dict[int, CallPlace] = {}  # by its first result, a call that stands behind a text
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
    """For each message, the index of the last one before it, in one turn, that is no more than the assistant's text."""
    last, lasts = -1, []
    for index, message in enumerate(messages):
        if message.role in ("system", "user"):
            last = -1
        lasts.append(last)
        if message.role == "assistant" and not message.calls:
            last = index
    return lasts
