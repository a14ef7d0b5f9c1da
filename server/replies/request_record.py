"""Records how a request goes, for the metrics and its line in the log: its tokens, their times, and how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from model.contract.messages import SequenceOutput
from server.conversion.generation_request import GenerationRequest
from server.gates.request_context import request_figures_var
from server.replies.output_processor import STOP, TOOL_CALLS
from server.telemetry.request_metrics import RequestMetrics

logger = logging.getLogger(__name__)


class RequestRecord:
    """Times, counts and ending of one request.

    Args:
        arrived: `time.monotonic()` when the request arrived.
        is_background: nobody waits for the reply: its times are not among those of replies, nor its line among the
            log's.

    Attributes:
        num_cached_tokens: prompt tokens found in the prefix cache.
        num_expected_tokens: tokens that the text so far, or the client's prediction, had foretold.
        failure: why the request failed, if it did.
    """

    def __init__(
        self, request: GenerationRequest, metrics: RequestMetrics, *, arrived: float, is_background: bool
    ) -> None:
        self._request = request
        self._metrics = metrics
        self._arrived = arrived
        self._is_background = is_background
        self._queue_time_s = 0.0
        self._first_token_at: float | None = None
        self._last_token_at: list[float | None] = [None] * request.num_choices
        self._finish_reasons: list[str | None] = [None] * request.num_choices
        self.num_cached_tokens = 0
        self.num_expected_tokens = 0
        self.failure: str | None = None

    def note(self, index: int, output: SequenceOutput, num_tokens: int) -> None:
        """Takes the times of an output of a choice, and what only a sequence's first output carries.

        Args:
            num_tokens: tokens of the output that are part of the reply: none after a stop string.
        """
        now = time.monotonic()
        previous = self._last_token_at[index]
        self._last_token_at[index] = now
        tokens = self._metrics.tokens
        tokens.count += num_tokens
        if previous is not None and output.token_ids and not self._is_background:
            tokens.observe_latency(now - previous, len(output.token_ids))
        if output.num_expected_tokens:
            self.num_expected_tokens += min(num_tokens, output.num_expected_tokens)
        if output.queue_time_s is not None:
            self._queue_time_s = max(self._queue_time_s, output.queue_time_s)
        if output.num_cached_tokens is not None and index % self._request.n == 0:
            self.num_cached_tokens += output.num_cached_tokens
        if self._first_token_at is None:
            self._first_token_at = now
            if not self._is_background:
                self._metrics.time_to_first_token.observe(now - self._arrived)

    def note_finished(self, index: int, reason: str) -> None:
        """Records why a choice ended."""
        self._finish_reasons[index] = reason
        self._metrics.count_finished(STOP if reason == TOOL_CALLS else reason)

    def close(self, nums_generated: Sequence[int]) -> None:
        """Counts the request, of whose choices so many tokens were generated, and writes its line."""
        unfinished = self._finish_reasons.count(None)
        outcome = "error" if self.failure else "abort"
        for _ in range(unfinished):
            self._metrics.count_finished(outcome)
        now = time.monotonic()
        self._observe_end(now, nums_generated)
        fields = self._fields(now, sum(nums_generated))
        fields["reason"] = outcome if unfinished else ",".join(sorted({str(reason) for reason in self._finish_reasons}))
        logger.log(logging.DEBUG if self._is_background else logging.INFO, "finished", extra={"fields": fields})
        figures = request_figures_var.get()
        if figures is not None:
            figures.update(fields)

    def _observe_end(self, now: float, nums_generated: Sequence[int]) -> None:
        metrics, request = self._metrics, self._request
        metrics.prompt_tokens.inc(request.num_prompt_tokens)
        for index, prompt in enumerate(request.prompts):
            of_choices = nums_generated[index * request.n : (index + 1) * request.n]
            metrics.observe_prompt(len(prompt.ids), prompt.sampling.max_tokens, of_choices)
        if self._is_background:
            return
        metrics.e2e_latency.observe(now - self._arrived)
        if self._first_token_at is None:
            # A client that left before the first step only waited: counted as zero, a longer queue would look shorter.
            metrics.queue_time.observe(now - self._arrived)
            return
        metrics.queue_time.observe(self._queue_time_s)
        metrics.prefill_time.observe(max(0.0, self._first_token_at - self._arrived - self._queue_time_s))
        metrics.decode_time.observe(self._decode_s(self._first_token_at))

    def _decode_s(self, first_token_at: float) -> float:
        return max(at for at in self._last_token_at if at is not None) - first_token_at

    def _fields(self, now: float, num_tokens: int) -> dict[str, object]:
        fields: dict[str, object] = {
            "reason": None,
            "prompt_tokens": self._request.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "completion_tokens": num_tokens,
            "choices": self._request.num_choices,
            "duration_s": round(now - self._arrived, 3),
        }
        if self._first_token_at is not None:
            decode_s = self._decode_s(self._first_token_at)
            fields["ttft_s"] = round(self._first_token_at - self._arrived, 4)
            fields["tokens_per_s"] = round((num_tokens - 1) / decode_s, 1) if decode_s > 0 else None
        if self.failure:
            fields["error"] = self.failure
        return fields
