"""Requests of which the engine has said nothing yet: what to send again should it die, and how long the queue is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.contract.messages import AddRequest
from server.engine.handle import RequestHandle
from server.gates.callers import Caller, WaitingLine

# A request that nobody has heard of yet goes to so many engines; more, and it may be what they die of.
MAX_ATTEMPTS = 3


@dataclass(slots=True)
class Submission:
    """A request as it was sent."""

    messages: list[AddRequest]
    num_tokens: int
    caller: Caller
    line: WaitingLine
    num_attempts: int = 1


class UnstartedRequests:
    """A request counts as waiting until its first output, each of its prompts until its own.

    Attributes:
        waiting: the queue that admission goes by; requests in the background stand in nobody's way.
    """

    def __init__(self) -> None:
        self.waiting = WaitingLine()
        self._background = WaitingLine()
        self._submissions: dict[RequestHandle, Submission] = {}
        # By the first sequence of each prompt: where it waits, whose it is, its tokens.
        self._prompts: dict[int, tuple[WaitingLine, Caller, int]] = {}

    def __contains__(self, handle: RequestHandle) -> bool:
        return handle in self._submissions

    def get(self, handle: RequestHandle) -> Submission | None:
        """Returns what was sent of a request that waits."""
        return self._submissions.get(handle)

    def add(self, handle: RequestHandle, messages: list[AddRequest], caller: Caller, *, is_background: bool) -> None:
        """Takes in a request."""
        line = self._background if is_background else self.waiting
        num_tokens = sum(len(message.prompt_ids) for message in messages)
        self._submissions[handle] = Submission(messages, num_tokens, caller, line)
        line.change(caller, 1, num_tokens)
        for message in messages:
            self._prompts[message.seq_ids[0]] = (line, caller, len(message.prompt_ids))

    def remove(self, handle: RequestHandle) -> Submission | None:
        """Takes out a request that has begun or ended; returns what was sent of it, None where it did not wait."""
        submission = self._submissions.pop(handle, None)
        if submission is not None:
            submission.line.change(submission.caller, -1, 0)
        return submission

    def remove_prompt(self, seq_id: int) -> None:
        """Takes out the prompt of a sequence that has begun or ended, if it is the first of its prompt."""
        prompt = self._prompts.pop(seq_id, None)
        if prompt is not None:
            line, caller, num_tokens = prompt
            line.change(caller, 0, -num_tokens)

    def send_again(self) -> Iterator[AddRequest]:
        """Yields the messages of all that wait, for a new engine."""
        for submission in self._submissions.values():
            submission.num_attempts += 1
            yield from submission.messages

    def __len__(self) -> int:
        return len(self._submissions)
