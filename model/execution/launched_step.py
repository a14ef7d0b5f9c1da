"""A step that is under way, and what comes of it: so that the loop can plan and launch the next one in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AlignedList
from dataclasses import dataclass, field
from typing import NamedTuple

from model.contract.messages import TokenLogprob
from model.sampling.sampler import SampledToken
from model.scheduling.sequence import ScheduledBatch


class ModelRunnerOutput(NamedTuple):
    """What came of a step; the lists are aligned with the batch's entries.

    Attributes:
        batch: entries that were computed; those that are to be planned again are left out.
        tokens: the next tokens: one where one was wanted, more where drafts were right, else none.
        prompt_logprobs: log-probabilities of positions start + 1, ... of each chunk that asks for them, else None.
        ended: sequences whose last token ends them, by id: None where their grammar is complete, else why it cannot be
            followed.
        failures: messages for sequences that cannot go on, by id.
    """

    batch: ScheduledBatch
    tokens: list[list[SampledToken]]
    prompt_logprobs: list[list[TokenLogprob] | None]
    ended: dict[int, str | None]
    failures: dict[int, str]

    @classmethod
    def empty(cls, batch: ScheduledBatch) -> ModelRunnerOutput:
        """Returns an output that has nothing yet."""
        return cls(batch, [[] for _ in batch], [None] * len(batch), {}, {})


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step whose results the host has not seen.

    Attributes:
        wait: does what is left to do, waits for the device and returns the output; to be called once.
        launched_s: `time.monotonic()` at the launch.
    """

    batch: ScheduledBatch
    wait: Callable[[], ModelRunnerOutput]
    launched_s: float = field(default_factory=time.monotonic)


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
