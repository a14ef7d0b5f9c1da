"""A step that has been launched: what it will report, once the device is done.

It exists so that the loop can plan and launch the next step in between. It must not know how steps are planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from model.backends.base import HostCopy
from model.contract.messages import TokenLogprob
from model.sampling.grammar_states import GrammarStates
from model.sampling.sampler import PendingSample, SampledToken
from model.scheduling.scheduler import ScheduledBatch


class StepResult(NamedTuple):
    """What the device made of a batch; both lists are aligned with its entries.

    Attributes:
        tokens: the next token where one was wanted, else None.
        prompt_logprobs: of the positions start + 1 ... of the chunk where asked for, else None.
        ended: sequences that the new token ends because of their grammar: None where it is complete, else why it
            cannot be followed.
    """

    tokens: list[SampledToken | None]
    prompt_logprobs: list[list[TokenLogprob] | None]
    ended: dict[int, str | None]


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A launched step.

    Attributes:
        batch: what was launched.
        prompt_logprobs: see `StepResult`.
        sampled_entries: indexes of the entries that were sampled, in the order of the sample's rows.
        sample: their tokens on the device, or None when none was sampled.
        copy: brings them to the host.
        grammars: walk on with the tokens.
    """

    batch: ScheduledBatch
    prompt_logprobs: list[list[TokenLogprob] | None]
    sampled_entries: list[int]
    sample: PendingSample | None
    copy: HostCopy | None
    grammars: GrammarStates

    def wait(self) -> StepResult:
        """Waits for the device and returns what it made; to be called once."""
        entries = self.batch.entries
        result = StepResult([None] * len(entries), self.prompt_logprobs, {})
        if self.sample is None or self.copy is None:
            return result
        for index, token in zip(self.sampled_entries, self.sample.read(self.copy()), strict=True):
            result.tokens[index] = token
        tokens = ((e.seq.seq_id, token.token_id) for e, token in zip(entries, result.tokens, strict=True) if token)
        last = {
            seq.seq_id
            for seq, start, num_tokens, _ in entries
            if start + num_tokens + 1 - seq.num_prompt_tokens >= seq.sampling.max_tokens
        }
        result.ended.update(self.grammars.advance(tokens, last))
        return result
