"""Generates one request: turns the engine's outputs into deltas of text, until the request ends.

Streams and unstreamed replies both consume `Generation.deltas`; closing it frees the request's place in the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from model.contract.errors import EngineUnavailableError, InvalidRequestError
from model.contract.messages import SequenceOutput
from model.contract.tokenizer import Tokenizer
from prompts.stop import StopStrings
from server.conversion.generation_request import GenerationRequest
from server.engine.handle import News, RequestHandle, Taker
from server.replies.output_processor import ChoiceDelta, ChoiceProcessor
from server.replies.request_record import RequestRecord
from server.telemetry.request_metrics import RequestMetrics
from server.wire.errors import ApiError

logger = logging.getLogger(__name__)

# These take ten milliseconds; a request of thousands of choices, or one that was not read for a while, has more.
_MAX_SCORES_AT_ONCE = 4096
# The engine's callback serves all requests in one go: what takes more than half a millisecond is not done there.
_MAX_SCORES_IN_CALLBACK = 128


class TokenUsage(NamedTuple):
    """Tokens of a request.

    Attributes:
        num_prompt: tokens of all prompts.
        num_completion: tokens of all choices.
        num_cached: prompt tokens found in the prefix cache.
        num_expected: tokens of the choices that came as expected, by the client's prediction or the text so far.
        num_predicted: tokens that the client predicted, counted for each choice.
    """

    num_prompt: int
    num_completion: int
    num_cached: int
    num_expected: int = 0
    num_predicted: int = 0


class DeltaSink(Protocol):
    """Takes deltas without waking the task that waits for them."""

    def is_open(self) -> bool:
        """Tells whether it takes deltas now."""

    def write(self, deltas: list[ChoiceDelta]) -> None:
        """Takes deltas."""


class Generation:
    """A request in the engine, and the text of its replies.

    Args:
        handle: the mailbox of the request, which was submitted already.
        arrived: `time.monotonic()` when the request arrived.
        timeout_s: the longest it may take, or None.
        on_tokens: told numbers of tokens, as they are generated.
        is_background: nobody waits for it: its times are not among those of replies, nor its line among the log's.
    """

    def __init__(
        self,
        request: GenerationRequest,
        handle: RequestHandle,
        tokenizer: Tokenizer,
        metrics: RequestMetrics,
        *,
        arrived: float,
        timeout_s: float | None = None,
        on_tokens: Callable[[int], None] | None = None,
        is_background: bool = False,
    ) -> None:
        self.request = request
        self._handle = handle
        self._record = RequestRecord(request, metrics, arrived=arrived, is_background=is_background)
        self._arrived = arrived
        self._timeout_s = timeout_s
        self._on_tokens = on_tokens
        self._closed = False
        self._stops = StopStrings(request.stops) if request.stops else None
        self._processors = [self._processor(index, tokenizer) for index in range(request.num_choices)]

    def _processor(self, index: int, tokenizer: Tokenizer) -> ChoiceProcessor:
        request = self.request
        sampling = request.prompt_of(index).sampling
        return ChoiceProcessor(
            index,
            tokenizer,
            stops=self._stops,
            include_stop_str_in_output=request.include_stop_str_in_output,
            min_tokens=sampling.min_tokens,
            stop_token_ids=sampling.stop_token_ids,
            with_logprobs=request.num_logprobs is not None,
            show_special_tokens=request.show_special_tokens,
            parser=None if request.new_parser is None else request.new_parser(),
        )

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all choices so far; those after a stop string do not count."""
        return sum(processor.num_tokens for processor in self._processors)

    def usage(self) -> TokenUsage:
        """Returns the tokens so far, which are all once `deltas` has ended."""
        request = self.request
        return TokenUsage(
            request.num_prompt_tokens,
            self.num_completion_tokens,
            self._record.num_cached_tokens,
            self._record.num_expected_tokens,
            sum(len(prompt.prediction_ids) for prompt in request.prompts) * request.n,
        )

    async def deltas(
        self, *, by_token: bool = False, sink: DeltaSink | None = None
    ) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Yields what is new, at most one delta a choice at a time, until every choice has finished.

        Args:
            by_token: yield one delta a token, whatever came together: then the same tokens make the same deltas.
            sink: takes deltas as soon as they come, while it is open; those that end a choice or are much work are
                yielded.

        Raises:
            EngineUnavailableError: the engine cannot finish it.
            InvalidRequestError: the engine found that it cannot do what the request asks for.
            ApiError: it took too long, or the engine reports an error.
        """
        take = None if sink is None else partial(self._take, sink)
        try:
            while True:
                news = await self._next(take)
                if not news:
                    return
                merged: dict[int, ChoiceDelta] = {}
                num_scores = 0
                if by_token:
                    news = [(index, part) for index, output in news for part in _by_token(output)]
                for index, output in news:
                    if num_scores > _MAX_SCORES_AT_ONCE or (by_token and merged):
                        yield list(merged.values())
                        merged, num_scores = {}, 0
                        await asyncio.sleep(0)  # the others' turn
                    num_scores += self._num_scores(output)
                    self._merge(merged, index, output)
                if merged:
                    yield list(merged.values())
        except Exception as error:
            self._record.failure = str(error) or type(error).__name__
            raise
        finally:
            self.close()

    def _take(self, sink: DeltaSink, news: News) -> bool:
        """Gives news to a sink, in the engine's callback; False leaves endings, and much work, to `deltas`."""
        num_scores = 0
        for _, output in news:
            if output.finish_reason is not None:
                return False
            num_scores += self._num_scores(output)
        if num_scores > _MAX_SCORES_IN_CALLBACK or not sink.is_open():
            return False
        merged: dict[int, ChoiceDelta] = {}
        for index, output in news:
            self._merge(merged, index, output)
        if merged:
            sink.write(list(merged.values()))
        return True

    def _merge(self, merged: dict[int, ChoiceDelta], index: int, output: SequenceOutput) -> None:
        """Adds an output of a choice to the deltas of choices."""
        delta = self._process(index, output)
        if delta is None:
            return
        if index in merged:
            merged[index].extend(delta)
        else:
            merged[index] = delta

    def _num_scores(self, output: SequenceOutput) -> int:
        """Counts the log-probabilities an output makes, or its tokens where none are asked for."""
        num_tokens = len(output.token_ids)
        if output.prompt_logprobs is not None:
            num_tokens += len(output.prompt_logprobs)
        return num_tokens * (1 + (self.request.num_logprobs or 0))

    async def _next(self, take: Taker | None) -> News:
        if self._timeout_s is None:
            return await self._handle.next(take)
        left_s = self._arrived + self._timeout_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                return await self._handle.next(take)
        except TimeoutError:
            raise ApiError(
                504,
                f"Not finished within {self._timeout_s:g} s (--request-timeout-s): ask for fewer tokens.",
                type="server_error",
                code="request_timeout",
                headers={"x-should-retry": "false"},
            ) from None

    def _process(self, index: int, output: SequenceOutput) -> ChoiceDelta | None:
        processor = self._processors[index]
        if processor.finished:
            return None  # was on its way when a stop string was found
        if output.finish_reason is not None:
            _raise_failure(output)
        before = processor.num_tokens
        delta = processor.push(output)
        num_tokens = processor.num_tokens - before
        if self._on_tokens is not None:
            self._on_tokens(num_tokens)
        self._record.note(index, output, num_tokens)
        if delta.finish_reason is not None:
            self._record.note_finished(index, delta.finish_reason)
            if output.finish_reason is None:
                self._handle.abort_choice(index)
        return delta

    def close(self) -> None:
        """Frees whatever the request still holds in the engine; the first call also writes its log line."""
        self._handle.abort()
        if self._closed:
            return
        self._closed = True
        self._record.close([processor.num_tokens for processor in self._processors])


def _raise_failure(output: SequenceOutput) -> None:
    """Raises the failure that an output reports, if there is one."""
    if output.finish_reason == "error":
        raise ApiError(
            500,
            output.error or "The engine could not generate this reply.",
            type="server_error",
            code="server_error",
        )
    if output.finish_reason == "invalid":
        raise InvalidRequestError(output.error or "The engine cannot generate this reply.")
    if output.finish_reason == "abort":
        raise EngineUnavailableError(output.error or "The engine gave this request up; please send it again.")


def _by_token(output: SequenceOutput) -> Iterator[SequenceOutput]:
    """Yields the same with one token each; what belongs to the first or the last stays with it."""
    ids, logprobs = output.token_ids, output.logprobs
    if len(ids) < 2:
        yield output
        return
    for number, token_id in enumerate(ids):
        is_first, is_last = number == 0, number == len(ids) - 1
        yield SequenceOutput(
            output.seq_id,
            [token_id],
            finish_reason=output.finish_reason if is_last else None,
            stop_token_id=output.stop_token_id if is_last else None,
            logprobs=None if logprobs is None else [logprobs[number]],
            num_cached_tokens=output.num_cached_tokens if is_first else None,
            prompt_logprobs=output.prompt_logprobs if is_first else None,
            queue_time_s=output.queue_time_s if is_first else None,
            error=output.error if is_last else None,
        )
