"""Makes a `SequenceOutput` of what a step did to a sequence; the first of each sequence tells more than the others."""

from __future__ import annotations

from model.contract.messages import SequenceOutput, TokenLogprob
from model.scheduling.sequence import SequenceUpdate


class OutputBuilder:
    """Keeps what is only told with a sequence's first output."""

    def __init__(self) -> None:
        self._has_begun: set[int] = set()
        self._prompt_logprobs: dict[int, list[TokenLogprob]] = {}

    def keep_scores(self, seq_id: int, start: int, scores: list[TokenLogprob]) -> None:
        """Takes the log-probabilities of the prompt tokens that follow a chunk's positions, from `start` on."""
        kept = self._prompt_logprobs.setdefault(seq_id, [])
        # A preempted prefill begins again; what it computes twice is the same.
        del kept[start:]
        kept += scores

    def build(
        self, update: SequenceUpdate, logprobs: list[TokenLogprob] | None, num_expected: int
    ) -> SequenceOutput:
        """Returns the output of a sequence that got tokens, `num_expected` of them as they were expected, or ended."""
        seq, token_ids, finish_reason, stop_token_id = update
        if seq.seq_id in self._has_begun:
            if num_expected:
                return SequenceOutput(
                    seq.seq_id, token_ids, finish_reason, stop_token_id, logprobs, num_expected_tokens=num_expected
                )
            return SequenceOutput(seq.seq_id, token_ids, finish_reason, stop_token_id, logprobs)
        self._has_begun.add(seq.seq_id)
        assert seq.first_scheduled_time_s is not None
        return SequenceOutput(
            seq.seq_id,
            token_ids,
            finish_reason,
            stop_token_id,
            logprobs,
            num_cached_tokens=seq.num_cached_tokens,
            prompt_logprobs=self._prompt_logprobs.pop(seq.seq_id, None),
            queue_time_s=seq.first_scheduled_time_s - seq.arrival_time_s,
            num_expected_tokens=num_expected,
        )

    def forget(self, seq_id: int) -> None:
        """Drops a sequence that has ended, if it is known."""
        self._has_begun.discard(seq_id)
        self._prompt_logprobs.pop(seq_id, None)

    def __len__(self) -> int:
        """Sequences that something is kept for."""
        return len(self._has_begun | self._prompt_logprobs.keys())
