"""A step that has been launched: what it will report, once the device is done.

It exists so that the loop can plan and launch the next step in between. It must not know how steps are planned.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from model.backends.base import HostCopy
from model.contract.messages import TokenLogprob
from model.sampling.grammar_states import GrammarStates
from model.sampling.sampler import SampledToken, SamplerOutput
from model.scheduling.sequence import ScheduledBatch


class StepResult(NamedTuple):
    """What came of a batch; both lists are aligned with its entries.

    Attributes:
        batch: what was computed. Of what was to be, it may lack some that are to be planned again.
        tokens: the next token where one was wanted, else None.
        prompt_logprobs: of the positions start + 1 ... of the chunk where asked for, else None.
        ended: sequences that the new token ends because of their grammar: None where it is complete, else why it
            cannot be followed.
        failures: messages for sequences that cannot go on, by id.
    """

    batch: ScheduledBatch
    tokens: list[SampledToken | None]
    prompt_logprobs: list[list[TokenLogprob] | None]
    ended: dict[int, str | None]
    failures: dict[int, str]


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step on the device, whose results the host has not seen.

    Attributes:
        batch: what was launched.
        prompt_logprobs: see `StepResult`.
        sampled_entries: indexes of the entries that were sampled, in the order of the sample's rows.
        sampled: their tokens on the device, or None when none was sampled.
        copy: brings them to the host.
        grammars: walk on with the tokens.
        launched_s: when, of `time.monotonic()`.
    """

    batch: ScheduledBatch
    prompt_logprobs: list[list[TokenLogprob] | None]
    sampled_entries: list[int]
    sampled: SamplerOutput | None
    copy: HostCopy | None
    grammars: GrammarStates
    launched_s: float = field(default_factory=time.monotonic)

    def wait(self) -> StepResult:
        """Waits for the device and returns what it made; to be called once."""
        entries = self.batch.entries
        result = StepResult(self.batch, [None] * len(entries), self.prompt_logprobs, {}, {})
        if self.sampled is None or self.copy is None:
            return result
        for index, token in zip(self.sampled_entries, self.sampled.read(self.copy()), strict=True):
            result.tokens[index] = token
        tokens = ((entry.seq_id, token.token_id) for entry, token in zip(entries, result.tokens, strict=True) if token)
        last = {e.seq_id for e in entries if e.end + 1 - e.num_prompt_tokens >= e.sampling.max_tokens}
        result.ended.update(self.grammars.advance(tokens, last))
        return result
