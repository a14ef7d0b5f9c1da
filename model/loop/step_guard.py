"""Runs steps so that what one sequence breaks, it breaks alone, and a full device slows the loop instead of ending it.

It knows which errors concern the device (those end the process; the server starts another), which mean that memory ran
out (the step is planned again, smaller) and that all others are somebody's: it finds out whose by running the parts.
It must not know requests, outputs or how the loop plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

from model.execution.launched_step import StepResult
from model.scheduling.sequence import ScheduledBatch

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "The device has no memory left for this request; please send it again later."
STEP_FAILED = "The engine failed on this request; the server's log has the details."

# After this many good steps in a row a reduced budget is doubled again.
_STEPS_UNTIL_REGROWTH = 64
# A sequence that fails alone may be to blame; so many of them one after another are not.
_MAX_LONELY_FAILURES = 3


class GuardedStep(NamedTuple):
    """What came of a step.

    Attributes:
        result: of the batch; None when nothing was computed, and the step is to be planned again.
        failures: messages for sequences that cannot go on, by id.
        is_out_of_memory: whether those failed for want of memory, and would do elsewhere or later.
    """

    result: StepResult | None
    failures: dict[int, str]
    is_out_of_memory: bool = False


class StepGuard:
    """Between the loop and the model runner.

    Args:
        execute: runs a batch.
        undo: told the ids of a batch that failed half-way, to drop what may be half-written for them.
        max_num_batched_tokens: the most tokens in a step.

    Attributes:
        token_budget: the most tokens that the next step should have.
    """

    def __init__(
        self,
        execute: Callable[[ScheduledBatch], StepResult],
        undo: Callable[[list[int]], None],
        max_num_batched_tokens: int,
    ) -> None:
        self._execute = execute
        self._undo = undo
        self._max_num_batched_tokens = max_num_batched_tokens
        self._num_good_steps = 0
        self._num_lonely_failures = 0
        self.token_budget = max_num_batched_tokens

    def run(self, batch: ScheduledBatch) -> GuardedStep:
        """Runs a batch; what cannot be computed is left out.

        Raises:
            Exception: the device or the code is broken for everybody.
        """
        try:
            result = self._execute(batch)
        except Exception as error:
            self._undo([entry.seq.seq_id for entry in batch])
            if not is_out_of_memory(error):
                return self._isolate(batch, error)
            reason = _one_line(error)
        else:
            self.note_success()
            return GuardedStep(result, {})
        # Outside of the handler: the traceback holds on to the step's tensors until here.
        return self._shrink(batch, reason)

    def note_success(self) -> None:
        """Takes note of a step that went well; after some of them a lowered budget grows again."""
        self._num_lonely_failures = 0
        if self.token_budget < self._max_num_batched_tokens:
            self._num_good_steps += 1
            if self._num_good_steps >= _STEPS_UNTIL_REGROWTH:
                self._num_good_steps = 0
                self.token_budget = min(2 * self.token_budget, self._max_num_batched_tokens)
                logger.info("steps may have %d tokens again", self.token_budget)

    def shrink_for(self, num_tokens: int, error: Exception) -> bool:
        """Lowers the budget if that may help.

        Args:
            num_tokens: of the step that failed.
            error: it failed with.

        Returns:
            False when memory is not what was missing, or the step was of one token.
        """
        if num_tokens == 1 or not is_out_of_memory(error):
            return False
        self._lower_budget(num_tokens, _one_line(error))
        return True

    def _lower_budget(self, num_tokens: int, reason: str) -> None:
        self._num_good_steps = 0
        self.token_budget = num_tokens // 2
        logger.error(
            "out of memory in a step of %d tokens; the next ones have at most %d (%s)",
            num_tokens,
            self.token_budget,
            reason,
        )

    def _shrink(self, batch: ScheduledBatch, reason: str) -> GuardedStep:
        if batch.num_tokens > 1:
            self._lower_budget(batch.num_tokens, reason)
            return GuardedStep(None, {})
        seq = batch.entries[0].seq
        logger.error("out of memory in a step of one token; giving request %s up (%s)", seq.request_id, reason)
        return GuardedStep(_empty(batch), {seq.seq_id: OUT_OF_MEMORY}, is_out_of_memory=True)

    def _isolate(self, batch: ScheduledBatch, error: Exception) -> GuardedStep:
        """Finds the sequences a step fails on; the others get what they would have got without them."""
        if isinstance(error, torch.AcceleratorError):
            raise error  # nothing on this device works from here on
        logger.error("a step of %d sequences failed; looking for whose fault it is", len(batch), exc_info=error)
        result, failures = _empty(batch), {}
        if len(batch) == 1:
            self._num_lonely_failures += 1
            failures[batch.entries[0].seq.seq_id] = STEP_FAILED
            if self._num_lonely_failures >= _MAX_LONELY_FAILURES:
                raise error
            return GuardedStep(result, failures)
        pending = _halves(range(len(batch)))
        while pending:
            indices = pending.pop()
            if self._run_part(batch, indices, result):
                continue
            if len(indices) > 1:
                pending += _halves(indices)
            else:
                seq = batch.entries[indices[0]].seq
                logger.error("request %s cannot go on: it makes the step fail", seq.request_id)
                failures[seq.seq_id] = STEP_FAILED
        if len(failures) == len(batch):
            raise error  # everybody's fault is nobody's
        self._num_lonely_failures = 0
        return GuardedStep(result, failures)

    def _run_part(self, batch: ScheduledBatch, indices: range, result: StepResult) -> bool:
        """Runs some entries and puts what came of them into the result; returns whether it could."""
        part = _part(batch, indices)
        try:
            some = self._execute(part)
        except Exception as error:
            self._undo([entry.seq.seq_id for entry in part])
            if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
                raise
            return False
        for position, index in enumerate(indices):
            result.tokens[index] = some.tokens[position]
            result.prompt_logprobs[index] = some.prompt_logprobs[position]
        result.ended.update(some.ended)
        return True


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, which less work may avoid."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no type of its own for memory that a CPU cannot have.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _halves(indices: range) -> list[range]:
    middle = len(indices) // 2
    return [indices[:middle], indices[middle:]]


def _part(batch: ScheduledBatch, indices: range) -> ScheduledBatch:
    decodes = [batch.entries[i] for i in indices if i < batch.num_decodes]
    return ScheduledBatch(decodes, [batch.entries[i] for i in indices if i >= batch.num_decodes])


def _empty(batch: ScheduledBatch) -> StepResult:
    return StepResult([None] * len(batch), [None] * len(batch), {})


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
