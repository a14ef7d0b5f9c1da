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
from server.gates.request_context import request_figures_var
from server.replies.output_processor import STOP, TOOL_CALLS, ChoiceDelta, ChoiceProcessor
from server.telemetry.request_metrics import RequestMetrics
from server.wire.errors import ApiError

logger = logging.getLogger(__name__)

# Ten milliseconds' worth: a request of thousands of choices, or one that was not read for a while, has more.
_MAX_SCORES_AT_ONCE = 4096
# The engine's callback goes through all requests in one go: more than half a millisecond is not for it.
_MAX_SCORES_IN_CALLBACK = 128


class TokenUsage(NamedTuple):
    """Tokens of a request.

    Attributes:
        num_prompt: of all prompts.
        num_completion: of all choices.
        num_cached: of the prompts, found in the prefix cache.
        num_expected: of the choices, those that came as expected.
        num_predicted: of all choices, as the client expects them.
    """

    num_prompt: int
    num_completion: int
    num_cached: int
    num_expected: int = 0
    num_predicted: int = 0


class DeltaSink(Protocol):
    """Where deltas can go without waking whoever waits for them."""

    def is_open(self) -> bool:
        """Whether it takes any now."""

    def write(self, deltas: list[ChoiceDelta]) -> None:
        """Takes deltas."""


class Generation:
    """A request in the engine, and the text that comes of it.

    Args:
        request: what to generate.
        handle: of the request, already submitted.
        tokenizer: of the checkpoint.
        metrics: told how it went.
        arrived: `time.monotonic()` when the request arrived.
        timeout_s: the longest it may take, or None.
        on_tokens: told how many tokens were generated since it was told last.
        is_background: nobody waits for it: its times are not among those of replies, nor its line among the log's.

    Attributes:
        num_completion_tokens: of all choices so far.
        num_cached_tokens: prompt tokens that were in the prefix cache.
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
        self.num_cached_tokens = 0
        self._num_expected_tokens = 0
        self._handle = handle
        self._metrics = metrics
        self._arrived = arrived
        self._timeout_s = timeout_s
        self._on_tokens = on_tokens
        self._is_background = is_background
        self._closed = False
        self._failure: str | None = None
        self._queue_time_s = 0.0
        self._first_token_at: float | None = None
        self._last_token_at: list[float | None] = [None] * request.num_choices
        self._finish_reasons: list[str | None] = [None] * request.num_choices
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
        """Of all choices so far; tokens after a stop string do not count."""
        return sum(processor.num_tokens for processor in self._processors)

    def usage(self) -> TokenUsage:
        """Returns the tokens so far, which are all once `deltas` has ended."""
        request = self.request
        return TokenUsage(
            request.num_prompt_tokens,
            self.num_completion_tokens,
            self.num_cached_tokens,
            self._num_expected_tokens,
            sum(len(prompt.prediction_ids) for prompt in request.prompts) * request.n,
        )

    async def deltas(
        self, *, by_token: bool = False, sink: DeltaSink | None = None
    ) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Yields what is new, at most one delta a choice at a time, until every choice has finished.

        Args:
            by_token: one delta a token, whatever came together: where the same tokens are to make the same deltas.
            sink: while it is open it is given what goes on, as soon as it comes; what ends a choice, and what is much
                work, is yielded.

        Raises:
            EngineUnavailableError: the engine cannot finish it.
            InvalidRequestError: what it asks for cannot be done, as it turned out.
            ApiError: it took too long, or the engine reports an error.
        """
        take = None if sink is None else partial(self._take, sink)
        try:
            while True:
                news = await self._next(take)
                if not news:
                    return
                num_before = self.num_completion_tokens if self._on_tokens is not None else 0
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
                if self._on_tokens is not None:
                    self._on_tokens(self.num_completion_tokens - num_before)
                if merged:
                    yield list(merged.values())
        except Exception as error:
            self._failure = str(error) or type(error).__name__
            raise
        finally:
            self.close()

    def _take(self, sink: DeltaSink, news: News) -> bool:
        """Gives news to a sink, from the engine's own callback; False where they are not of the plain kind."""
        num_scores = 0
        for _, output in news:
            if output.finish_reason is not None:
                return False
            num_scores += self._num_scores(output)
        if num_scores > _MAX_SCORES_IN_CALLBACK or not sink.is_open():
            return False
        num_before = self.num_completion_tokens if self._on_tokens is not None else 0
        merged: dict[int, ChoiceDelta] = {}
        for index, output in news:
            self._merge(merged, index, output)
        if self._on_tokens is not None:
            self._on_tokens(self.num_completion_tokens - num_before)
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
        """How much an output makes: tokens and the alternatives that are told with them."""
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
        if output.num_expected_tokens:
            self._num_expected_tokens += min(num_tokens, output.num_expected_tokens)
        self._observe(index, output, num_tokens)
        if delta.finish_reason is not None:
            self._finish_reasons[index] = delta.finish_reason
            self._metrics.count_finished(STOP if delta.finish_reason == TOOL_CALLS else delta.finish_reason)
            if output.finish_reason is None:
                self._handle.abort_choice(index)
        return delta

    def _observe(self, index: int, output: SequenceOutput, num_tokens: int) -> None:
        """Takes the times, and what only a sequence's first output carries; not all its tokens may be of the reply."""
        now = time.monotonic()
        previous = self._last_token_at[index]
        self._last_token_at[index] = now
        tokens = self._metrics.tokens
        tokens.count += num_tokens
        if previous is not None and output.token_ids and not self._is_background:
            tokens.observe_latency(now - previous, len(output.token_ids))
        if output.queue_time_s is not None:
            self._queue_time_s = max(self._queue_time_s, output.queue_time_s)
        if output.num_cached_tokens is not None and index % self.request.n == 0:
            self.num_cached_tokens += output.num_cached_tokens
        if self._first_token_at is None:
            self._first_token_at = now
            if not self._is_background:
                self._metrics.time_to_first_token.observe(now - self._arrived)

    def close(self) -> None:
        """Frees whatever the request still holds in the engine; the first call also writes its log line."""
        self._handle.abort()
        if self._closed:
            return
        self._closed = True
        unfinished = self._finish_reasons.count(None)
        outcome = "error" if self._failure else "abort"
        for _ in range(unfinished):
            self._metrics.count_finished(outcome)
        self._record(outcome if unfinished else ",".join(sorted({str(r) for r in self._finish_reasons})))

    def _record(self, reason: str) -> None:
        now = time.monotonic()
        metrics, request = self._metrics, self.request
        metrics.prompt_tokens.inc(request.num_prompt_tokens)
        if not self._is_background:
            metrics.e2e_latency.observe(now - self._arrived)
            # Whoever gave up before the first step has only waited: as zero it would make a longer queue look shorter.
            metrics.queue_time.observe(now - self._arrived if self._first_token_at is None else self._queue_time_s)
        for index, prompt in enumerate(request.prompts):
            choices = self._processors[index * request.n : (index + 1) * request.n]
            nums_generated = [choice.num_tokens for choice in choices]
            metrics.observe_prompt(len(prompt.ids), prompt.sampling.max_tokens, nums_generated)
        num_tokens = self.num_completion_tokens
        fields: dict[str, object] = {
            "reason": reason,
            "prompt_tokens": request.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "completion_tokens": num_tokens,
            "choices": request.num_choices,
            "duration_s": round(now - self._arrived, 3),
        }
        if self._first_token_at is not None:
            ttft_s = self._first_token_at - self._arrived
            decode_s = max(at for at in self._last_token_at if at is not None) - self._first_token_at
            if not self._is_background:
                metrics.prefill_time.observe(max(0.0, ttft_s - self._queue_time_s))
                metrics.decode_time.observe(decode_s)
            fields["ttft_s"] = round(ttft_s, 4)
            fields["tokens_per_s"] = round((num_tokens - 1) / decode_s, 1) if decode_s > 0 else None
        if self._failure:
            fields["error"] = self._failure
        logger.log(logging.DEBUG if self._is_background else logging.INFO, "finished", extra={"fields": fields})
        figures = request_figures_var.get()
        if figures is not None:
            figures.update(fields)


def _raise_failure(output: SequenceOutput) -> None:
    """Raises what an output says went wrong, if it says so."""
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
