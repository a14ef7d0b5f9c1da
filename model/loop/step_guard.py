"""Runs steps so that what one sequence breaks, it breaks alone, and a full device slows the loop instead of ending it.

Errors of the device end the process, and the server starts another. Where memory ran out the step is planned again,
smaller. Any other error is one sequence's: running parts of the batch finds out whose. It must not know requests,
outputs or how the loop plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch

from model.contract.log_text import first_line
from model.distributed.ranks import OutOfStepError
from model.execution.launched_step import ModelRunnerOutput
from model.scheduling.sequence import ScheduledBatch, ScheduledSequence

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "The device has no memory left for this request; please send it again later."
STEP_FAILED = "The engine failed on this request; the server's log has the details."

# After this many good steps in a row a reduced budget is doubled again.
_STEPS_UNTIL_REGROWTH = 64
# A sequence that fails alone may be to blame; so many of them one after another are not.
_MAX_LONELY_FAILURES = 3


# Nothing on this device, or between these ranks, works from here on.
FATAL_ERRORS = (torch.AcceleratorError, OutOfStepError)


class StepGuard:
    """Runs batches, and decides what an error means.

    Args:
        execute: runs a batch.
        undo: called with the ids of a batch that failed half-way, to drop what may be half-written for them.
        max_num_batched_tokens: the most tokens in a step.

    Attributes:
        token_budget: the most tokens that the next step should have.
    """

    def __init__(
        self,
        execute: Callable[[ScheduledBatch], ModelRunnerOutput],
        undo: Callable[[list[int]], None],
        max_num_batched_tokens: int,
    ) -> None:
        self._execute = execute
        self._undo = undo
        self._max_num_batched_tokens = max_num_batched_tokens
        self._num_good_steps = 0
        self._num_lonely_failures = 0
        self.token_budget = max_num_batched_tokens

    def run(self, batch: ScheduledBatch) -> ModelRunnerOutput:
        """Runs a batch.

        Returns:
            what came of it. Its batch lacks those for whom there was no memory: they should be planned again, smaller.

        Raises:
            Exception: the device or the code is broken for everybody.
        """
        result = self._try(batch)
        if isinstance(result, ModelRunnerOutput):
            self.note_success()
            return result
        if is_out_of_memory(result):
            return self._shrink(batch, result)
        return self._isolate(batch, result)

    def _try(self, batch: ScheduledBatch) -> ModelRunnerOutput | Exception:
        """Runs a batch, or returns why that cannot be: without the traceback, which holds on to the step's tensors."""
        try:
            return self._execute(batch)
        except FATAL_ERRORS:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                logger.error("a step of %d sequences failed", len(batch), exc_info=error)
            failure = error.with_traceback(None)
        self._undo([entry.seq_id for entry in batch])
        return failure

    def note_success(self) -> None:
        """Counts a step that went well; after some of them a lowered budget grows again."""
        self._num_lonely_failures = 0
        if self.token_budget < self._max_num_batched_tokens:
            self._num_good_steps += 1
            if self._num_good_steps >= _STEPS_UNTIL_REGROWTH:
                self._num_good_steps = 0
                self.token_budget = min(2 * self.token_budget, self._max_num_batched_tokens)
                logger.info("steps may have %d tokens again", self.token_budget)

    def give_up(self, batch: ScheduledBatch, error: Exception) -> ModelRunnerOutput:
        """Ends the sequences of a step that failed when others were planned already, so that it cannot be run in parts.

        Raises:
            Exception: `error`, where so many steps failed one after another that no sequence is to blame.
        """
        logger.error("a step of %d sequences failed", len(batch), exc_info=error)
        self._num_lonely_failures += 1
        if self._num_lonely_failures >= _MAX_LONELY_FAILURES:
            raise error
        self._undo([entry.seq_id for entry in batch])
        result = ModelRunnerOutput.empty(batch)
        for entry in batch:
            self._give_up(entry, result, OUT_OF_MEMORY if is_out_of_memory(error) else STEP_FAILED)
        return result

    def shrink_for(self, num_tokens: int, error: Exception) -> bool:
        """Lowers the budget if that may help.

        Args:
            num_tokens: size of the step that failed with `error`.

        Returns:
            False when memory is not what was missing, or the step had one token.
        """
        if num_tokens == 1 or not is_out_of_memory(error):
            return False
        self._num_good_steps = 0
        self.token_budget = min(self.token_budget, max(1, num_tokens // 2))
        logger.error(
            "out of memory in a step of %d tokens; the next ones have at most %d (%s)",
            num_tokens,
            self.token_budget,
            first_line(error)[:300],
        )
        return True

    def _shrink(self, batch: ScheduledBatch, error: Exception) -> ModelRunnerOutput:
        if self.shrink_for(batch.num_tokens, error):
            return ModelRunnerOutput.empty(ScheduledBatch([], []))
        result = ModelRunnerOutput.empty(batch)
        self._give_up(batch.entries[0], result, OUT_OF_MEMORY)
        return result

    def _give_up(self, entry: ScheduledSequence, result: ModelRunnerOutput, message: str) -> None:
        logger.error("request %s cannot go on: %s", entry.request_id, message)
        result.failures[entry.seq_id] = message

    def _isolate(self, batch: ScheduledBatch, error: Exception) -> ModelRunnerOutput:
        """Finds the sequences a step fails on; the others get what they would have got without them."""
        result = ModelRunnerOutput.empty(batch)
        if len(batch) == 1:
            self._num_lonely_failures += 1
            self._give_up(batch.entries[0], result, STEP_FAILED)
            if self._num_lonely_failures >= _MAX_LONELY_FAILURES:
                raise error
            return result
        logger.error("looking for whose fault it is")
        left_out: set[int] = set()
        pending = _halves(range(len(batch)))
        while pending:
            indices = pending.pop()
            failure = self._run_part(batch, indices, result)
            if failure is None:
                continue
            if len(indices) > 1:
                pending += _halves(indices)
                continue
            entry = batch.entries[indices[0]]
            if self.shrink_for(entry.num_tokens, failure):
                left_out.add(indices[0])
            else:
                self._give_up(entry, result, OUT_OF_MEMORY if is_out_of_memory(failure) else STEP_FAILED)
        if list(result.failures.values()).count(STEP_FAILED) == len(batch):
            raise error  # no single sequence is to blame
        self._num_lonely_failures = 0
        return _take(result, [i for i in range(len(batch)) if i not in left_out])

    def _run_part(self, batch: ScheduledBatch, indices: range, result: ModelRunnerOutput) -> Exception | None:
        """Runs some entries and puts what came of them into the result; returns why it could not."""
        some = self._try(_part(batch, indices))
        if not isinstance(some, ModelRunnerOutput):
            return some
        for position, index in enumerate(indices):
            result.tokens[index] = some.tokens[position]
            result.prompt_logprobs[index] = some.prompt_logprobs[position]
        result.ended.update(some.ended)
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, which less work may avoid."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch has no type of its own for memory that a CPU cannot have.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _halves(indices: range) -> list[range]:
    middle = len(indices) // 2
    return [indices[:middle], indices[middle:]]


def _part(batch: ScheduledBatch, indices: Iterable[int]) -> ScheduledBatch:
    decodes: list[ScheduledSequence] = []
    chunks: list[ScheduledSequence] = []
    for i in indices:
        (decodes if i < batch.num_decodes else chunks).append(batch.entries[i])
    return ScheduledBatch(decodes, chunks)


def _take(result: ModelRunnerOutput, indices: list[int]) -> ModelRunnerOutput:
    """What came of some of the entries, in their order."""
    return result._replace(
        batch=_part(result.batch, indices),
        tokens=[result.tokens[i] for i in indices],
        prompt_logprobs=[result.prompt_logprobs[i] for i in indices],
    )
