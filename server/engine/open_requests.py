"""Requests that the engine has been given and not finished: whose outputs go where, and what to send should it die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from model.contract.errors import EngineUnavailableError
from model.contract.messages import Abort, AddRequest, SequenceOutput, ToEngine
from server.engine.adapters import EngineAdapters
from server.engine.handle import RequestHandle
from server.gates.callers import Caller, WaitingLine

# A request that nobody has heard of yet goes to so many engines; more, and it may be what they die of.
MAX_ATTEMPTS = 3


@dataclass(slots=True)
class _OpenRequest:
    messages: list[AddRequest]  # none once the engine has said something of it
    num_tokens: int
    caller: Caller
    line: WaitingLine
    adapter_id: int
    num_attempts: int = 1

    @property
    def is_waiting(self) -> bool:
        return bool(self.messages)

    def leave_line(self) -> None:
        if self.is_waiting:
            self.messages = []
            self.line.change(self.caller, -1, 0)


class OpenRequests:
    """A request counts as waiting until its first output, each of its prompts until its own.

    Args:
        send: sends a message to the engine that runs now.

    Attributes:
        waiting: the queue that admission goes by; requests in the background stand in nobody's way.
        start_listeners: called with the number of prompt tokens of a request that has its first output.
    """

    def __init__(self, send: Callable[[ToEngine], None], adapters: EngineAdapters) -> None:
        self._send = send
        self._adapters = adapters
        self.waiting = WaitingLine()
        self.start_listeners: list[Callable[[int], None]] = []
        self._background = WaitingLine()
        self._requests: dict[RequestHandle, _OpenRequest] = {}
        self._handles: dict[int, RequestHandle] = {}  # by sequence
        # By the first sequence of each prompt: where it waits, whose it is, its tokens.
        self._prompts: dict[int, tuple[WaitingLine, Caller, int]] = {}
        self._with_news: list[RequestHandle] = []

    def __len__(self) -> int:
        return len(self._requests)

    def open(self, messages: list[AddRequest], caller: Caller) -> RequestHandle:
        """Takes in a request, one message a prompt."""
        first = messages[0]
        line = self._background if first.is_background else self.waiting
        num_tokens = sum(len(message.prompt_ids) for message in messages)
        request = _OpenRequest(messages, num_tokens, caller, line, first.adapter_id)
        seq_ids = [seq_id for message in messages for seq_id in message.seq_ids]
        handle = RequestHandle(first.request_id, seq_ids, self._abort, self._on_news)
        self._requests[handle] = request
        self._handles.update(dict.fromkeys(seq_ids, handle))
        if first.adapter_id:
            self._adapters.add_user(first.adapter_id)
        line.change(caller, 1, num_tokens)
        for message in messages:
            self._prompts[message.seq_ids[0]] = (line, caller, len(message.prompt_ids))
        return handle

    def deliver(self, output: SequenceOutput) -> None:
        """Gives an output to its request; one for a sequence that was aborted is dropped."""
        handle = self._handles.get(output.seq_id)
        if handle is None:
            return
        if output.finish_reason is not None:
            del self._handles[output.seq_id]
        self._begin_prompt(output.seq_id)
        handle.deliver(output)
        request = self._requests.get(handle)
        if request is not None and request.is_waiting:
            request.leave_line()
            for listener in self.start_listeners if request.line is self.waiting else ():
                listener(request.num_tokens)
        if output.finish_reason is not None and not handle.open_seq_ids:
            self._close(handle)

    def adapters_in_use(self) -> tuple[set[int], set[int]]:
        """Returns the adapters with a request that has a token, and those whose requests all wait."""
        used = [request for request in self._requests.values() if request.adapter_id]
        running = {request.adapter_id for request in used if not request.is_waiting}
        return running, {request.adapter_id for request in used} - running

    def take_waiting(self) -> Iterator[AddRequest]:
        """Yields the messages of all that wait, for a new engine."""
        for request in self._requests.values():
            if request.is_waiting:
                request.num_attempts += 1
                yield from request.messages

    def fail_lost(self) -> None:
        """Ends what an engine took along and cannot be told twice; the rest waits for the next one."""
        for handle, request in list(self._requests.items()):
            if not request.is_waiting:
                self._fail(handle, "The engine stopped while the request ran; please send it again.")
            elif request.num_attempts >= MAX_ATTEMPTS:
                self._fail(handle, f"The engine stopped {MAX_ATTEMPTS} times before this request's first token.")

    def fail_all(self, message: str) -> None:
        """Ends every request with an error."""
        for handle in list(self._requests):
            self._fail(handle, message)

    def abort_all(self, message: str) -> None:
        """Ends every request with an error, and its sequences in the engine."""
        if self._handles:
            self._send(Abort(tuple(self._handles)))
        self.fail_all(message)

    def _fail(self, handle: RequestHandle, message: str) -> None:
        self._forget(handle.open_seq_ids)
        self._close(handle)
        handle.fail(EngineUnavailableError(message))

    def _abort(self, handle: RequestHandle, seq_ids: tuple[int, ...]) -> None:
        self._forget(seq_ids)
        if not handle.open_seq_ids:
            self._close(handle)
        self._send(Abort(seq_ids))

    def _forget(self, seq_ids: tuple[int, ...]) -> None:
        for seq_id in seq_ids:
            self._handles.pop(seq_id, None)
            self._begin_prompt(seq_id)

    def _begin_prompt(self, seq_id: int) -> None:
        """Lets the prompt of a sequence wait no longer, if it is the first of its prompt."""
        prompt = self._prompts.pop(seq_id, None)
        if prompt is not None:
            line, caller, num_tokens = prompt
            line.change(caller, 0, -num_tokens)

    def _close(self, handle: RequestHandle) -> None:
        request = self._requests.pop(handle, None)
        if request is not None:
            request.leave_line()
            if request.adapter_id:
                self._adapters.remove_user(request.adapter_id)

    def _on_news(self, handle: RequestHandle) -> None:
        """Lets a request have its news when all that has come was delivered: what came together is written together."""
        if not self._with_news:
            asyncio.get_running_loop().call_soon(self._dispatch)
        self._with_news.append(handle)

    def _dispatch(self) -> None:
        handles, self._with_news = self._with_news, []
        for handle in handles:
            handle.dispatch()
