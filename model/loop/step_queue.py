"""Plans steps, launches them, and waits for them in order: one at a time, or ahead of the results.

It must not know requests or outputs; what it gives back is to be committed before the next step is planned.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator

from model.contract.watchdog import Watchdog
from model.execution.launched_step import LaunchedStep, ModelRunnerOutput
from model.execution.model_runner import ModelRunner
from model.loop.step_guard import FATAL_ERRORS, StepGuard
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import ScheduledBatch


class StepQueue:
    """Steps in flight, the oldest first.

    Where the device works on its own (a GPU, or other stages), the next step is planned and launched while the tokens
    of the one before travel. A sequence that turns out to have ended has then taken part in one step too many; nobody
    sees what that made of it.

    Args:
        watchdog: excuses the loop while the device works.

    Attributes:
        is_idle: the last plan was empty.
    """

    def __init__(self, scheduler: Scheduler, runner: ModelRunner, watchdog: Watchdog) -> None:
        limits = runner.worker.limits
        self._scheduler = scheduler
        self._runner = runner
        self._watchdog = watchdog
        self.guard = StepGuard(runner.execute, runner.undo, limits.max_num_batched_tokens)
        self._max_steps_ahead = limits.max_steps_ahead
        self._is_pipelined = limits.is_pipelined
        self.in_flight: deque[LaunchedStep] = deque()
        self._last_finished_s = 0.0
        self.is_idle = True

    def run(self) -> Iterator[ModelRunnerOutput]:
        """Runs a step, or launches one and finishes the oldest; yields what came of steps, perhaps nothing.

        Whoever iterates commits each output before it asks for the next one.
        """
        return self._run_ahead() if self._max_steps_ahead else self._run_guarded()

    def _plan(self) -> ScheduledBatch:
        self._scheduler.max_num_batched_tokens = self.guard.token_budget
        grammars = self._runner.grammars
        batch = self._scheduler.schedule(grammars.late.union(self._unread()), grammars.forced)
        self.is_idle = not batch
        return batch

    def _run_guarded(self) -> Iterator[ModelRunnerOutput]:
        """Plans a step, runs it and waits for it; where it fails, the sequence at fault ends and the others go on."""
        batch = self._plan()
        if not batch:
            return
        started = time.monotonic()
        with self._watchdog.excused():
            output = self.guard.run(batch)
        if not output.batch:
            return
        if output.batch is batch and not output.failures:
            self._note_time(batch, started)
        self._scheduler.update_after_schedule(output.batch)
        yield output

    def _run_ahead(self) -> Iterator[ModelRunnerOutput]:
        """Launches a step, then waits for the oldest one where as many are in flight as may be."""
        batch = self._plan()
        if self.in_flight and not batch:  # nothing else to do meanwhile
            yield self._finish()
            batch = self._plan()
        if not batch:
            return
        with self._watchdog.excused():
            error = self._launch(batch)
        if error is None:
            if len(self.in_flight) > self._max_steps_ahead:
                yield self._finish()
            return
        while self.in_flight:
            yield self._finish()
        if not self.guard.shrink_for(batch.num_tokens, error):
            yield from self._run_guarded()  # finds out whose fault it was

    def _unread(self) -> Collection[int]:
        """The sequences in flight that can go on only when the host has seen their token.

        Those with a grammar, which says what follows, run in every other step, all others in each. Between stages no
        token is known before the last of them has made it.
        """
        return {
            entry.seq_id
            for step in self.in_flight
            for entry in step.batch
            if entry.needs_sampling and (self._is_pipelined or entry.sampling.grammar is not None)
        }

    def _launch(self, batch: ScheduledBatch) -> Exception | None:
        """Starts a step; returns why it cannot be started."""
        try:
            launched = self._runner.launch(batch)
        except FATAL_ERRORS:
            raise
        except Exception as error:
            self._runner.undo([entry.seq_id for entry in batch])
            return error.with_traceback(None)  # which would hold on to the step's tensors
        self._scheduler.update_after_schedule(batch)
        self.in_flight.append(launched)
        return None

    def _finish(self) -> ModelRunnerOutput:
        """Waits for the oldest step in flight."""
        launched = self.in_flight.popleft()
        try:
            with self._watchdog.excused():
                output = launched.wait()
        except FATAL_ERRORS:
            raise
        except Exception as error:
            return self.guard.give_up(launched.batch, error)
        self.guard.note_success()
        self._note_time(launched.batch, max(launched.launched_s, self._last_finished_s))
        self._last_finished_s = time.monotonic()
        return output

    def _note_time(self, batch: ScheduledBatch, started_s: float) -> None:
        # Steps with drafts have no prompts, and are known by the number of their rows.
        is_decode = batch.num_decodes == len(batch)
        num_rows = batch.num_tokens if is_decode else sum(e.num_rows for e in batch.entries[: batch.num_decodes])
        num_prompt_tokens = batch.num_tokens - num_rows
        self._scheduler.prefill_budget.note(num_rows, num_prompt_tokens, time.monotonic() - started_s)
