"""A step that has been launched: what it will report, once the device is done.

It exists so that the loop can plan and launch the next step in between. It must not know how steps are planned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AlignedList
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
        tokens: the next tokens: one where one was wanted, more where drafts were right, else none.
        prompt_logprobs: of the positions start + 1 ... of the chunk where asked for, else None.
        ended: sequences that the last token ends because of their grammar: None where it is complete, else why it
            cannot be followed.
        failures: messages for sequences that cannot go on, by id.
    """

    batch: ScheduledBatch
    tokens: list[list[SampledToken]]
    prompt_logprobs: list[list[TokenLogprob] | None]
    ended: dict[int, str | None]
    failures: dict[int, str]


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step on the device, whose results the host has not seen.

    Attributes:
        batch: what was launched.
        prompt_logprobs: see `StepResult`.
        sampled_entries: indexes of the entries that were sampled, in the order of the sample's rows: one of each, and
            one more for each of its drafts.
        num_checkable: of each of them, how many of its drafts can be checked.
        sampled: their tokens on the device, or None when none was sampled.
        copy: brings them to the host.
        grammars: walk on with the tokens.
        launched_s: when, of `time.monotonic()`.
    """

    batch: ScheduledBatch
    prompt_logprobs: list[list[TokenLogprob] | None]
    sampled_entries: list[int]
    num_checkable: list[int]
    sampled: SamplerOutput | None
    copy: HostCopy | None
    grammars: GrammarStates
    launched_s: float = field(default_factory=time.monotonic)

    def wait(self) -> StepResult:
        """Waits for the device and returns what it made; to be called once."""
        entries = self.batch.entries
        result = StepResult(self.batch, [[] for _ in entries], self.prompt_logprobs, {}, {})
        if self.sampled is None or self.copy is None:
            return result
        tokens = self.sampled.read(self.copy())
        if len(tokens) == len(self.sampled_entries):  # no drafts
            for index, token in zip(self.sampled_entries, tokens, strict=True):
                result.tokens[index].append(token)
        else:
            first = 0
            for index, num_checkable in zip(self.sampled_entries, self.num_checkable, strict=True):
                draft_ids = entries[index].draft_ids
                result.tokens[index] = accept(tokens[first : first + 1 + num_checkable], draft_ids)
                first += 1 + len(draft_ids)
        if not self.grammars.follows_any:
            return result
        sampled = [(entry, tokens) for entry, tokens in zip(entries, result.tokens, strict=True) if tokens]
        last = {
            e.seq_id for e, tokens in sampled if e.end + len(tokens) - e.num_prompt_tokens >= e.sampling.max_tokens
        }
        ids = ((entry.seq_id, [token.token_id for token in tokens]) for entry, tokens in sampled)
        result.ended.update(self.grammars.advance(ids, last))
        return result


@dataclass(frozen=True, slots=True)
class DeferredStep:
    """A step that other ranks are busy with, and in which this one's part comes last.

    Attributes:
        batch: what was launched.
        run: does this rank's part.
        launched_s: when, of `time.monotonic()`.
    """

    batch: ScheduledBatch
    run: Callable[[], LaunchedStep]
    launched_s: float = field(default_factory=time.monotonic)

    def wait(self) -> StepResult:
        """Does what is left and returns what the step made; to be called once."""
        return self.run().wait()


def accept(tokens: list[SampledToken], draft_ids: AlignedList[int]) -> list[SampledToken]:
    """Returns the tokens that stand: the first, and each that follows guesses which are what was sampled.

    Args:
        tokens: sampled behind no guess, behind one, behind two, and so on.
        draft_ids: the guesses, at least as many as are needed.
    """
    num_right = 0
    while num_right + 1 < len(tokens) and tokens[num_right].token_id == draft_ids[num_right]:
        if not tokens[num_right + 1].is_valid:
            break  # the next step will find out, as it would have without guesses
        num_right += 1
    return tokens[: num_right + 1]
