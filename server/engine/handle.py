"""A request's mailbox: what the engine says about its sequences, in order, until the last of them ends.

Whoever waits for news is a task that is woken. It may leave behind what can take plain news without waking it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from model.contract.errors import QwenServerError
from model.contract.messages import SequenceOutput
from server.wire.errors import ApiError

# Outputs that may wait for a consumer; about 16 MB of them.
MAX_PENDING_OUTPUTS = 1 << 16

News = list[tuple[int, SequenceOutput]]
# Takes news, or returns False: then whoever waits gets them.
Taker = Callable[[News], bool]


class RequestHandle:
    """Outputs of all sequences of one HTTP request.

    Everything that has arrived since the last look is taken at once, so a slow consumer gets fewer, larger
    pieces and never holds the loop. One that is too slow even for that loses the request.

    Args:
        seq_ids: one a choice; a choice's index is its place here.
        on_abort: called with the sequence ids that are no longer wanted.
        on_news: called when `dispatch` has something to do; it should be called soon, once for all that comes until
            then. By default it is called at once.
    """

    def __init__(
        self,
        request_id: str,
        seq_ids: Iterable[int],
        on_abort: Callable[[RequestHandle, tuple[int, ...]], None],
        on_news: Callable[[RequestHandle], None] | None = None,
    ) -> None:
        self.request_id = request_id
        self._open = {seq_id: index for index, seq_id in enumerate(seq_ids)}
        self._on_abort = on_abort
        self._on_news = on_news or RequestHandle.dispatch
        self._pending: News = []
        self._waiter: asyncio.Future[None] | None = None
        self._take: Taker | None = None
        self._error: Exception | None = None

    @property
    def open_seq_ids(self) -> tuple[int, ...]:
        """Sequences that have not ended."""
        return tuple(self._open)

    def deliver(self, output: SequenceOutput) -> None:
        """Takes one output; one for a sequence that was aborted is dropped."""
        index = self._open.get(output.seq_id)
        if index is None:
            return
        if output.finish_reason is not None:
            del self._open[output.seq_id]
        pending = self._pending
        pending.append((index, output))
        if len(pending) > MAX_PENDING_OUTPUTS and self._open:
            self._error = ApiError(
                408, "The reply was read too slowly to be kept.", type="server_error", code="reader_too_slow"
            )
            self.abort()
        elif len(pending) == 1 and self._waiter is not None:
            self._on_news(self)

    def dispatch(self) -> None:
        """Gives the news to whoever waits."""
        if self._waiter is None:
            return
        if self._take is not None and self._error is None:
            pending, self._pending = self._pending, []
            try:
                if pending and not self._take(pending):
                    self._pending = pending
            except Exception as error:
                self._error = error
                self.abort()  # nothing may follow what is lost
        if self._pending or self._error is not None or not self._open:
            self._wake()

    def fail(self, error: QwenServerError) -> None:
        """Ends the request with an error, after what has already arrived."""
        if self._open:
            self._open.clear()
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, take: Taker | None = None) -> News:
        """Waits for news.

        Args:
            take: is offered what comes while this waits; what it takes is not returned, what it raises is raised here.

        Returns:
            (choice index, output) pairs in order of arrival; empty once every sequence has ended.

        Raises:
            QwenServerError: the engine cannot finish the request.
            ApiError: too much had not been taken.
        """
        while not self._pending:
            if self._error is not None:
                raise self._error
            if not self._open:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            self._take = take
            try:
                await self._waiter
            finally:
                self._waiter = self._take = None
        pending, self._pending = self._pending, []
        return pending

    def abort_choice(self, index: int) -> None:
        """Ends one choice: its text is complete (a stop string was found)."""
        self._abort(tuple(seq_id for seq_id, i in self._open.items() if i == index))

    def abort(self) -> None:
        """Ends whatever still runs; harmless when nothing does."""
        self._abort(self.open_seq_ids)

    def _abort(self, seq_ids: tuple[int, ...]) -> None:
        if not seq_ids:
            return
        for seq_id in seq_ids:
            del self._open[seq_id]
        self._on_abort(self, seq_ids)
        self._wake()
