"""The loop itself, synchronous: add requests, abort them, step.

It joins the scheduler (which knows sequences) and the model runner (which knows tensors), and turns what a step did
into the messages that cross the pipe. It must not know how those travel, nor anything of text or HTTP.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Collection, Iterable
from concurrent.futures import Future

import torch
from msgspec.structs import replace

from model.adapters.loading import AdapterLoader
from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.errors import InvalidRequestError
from model.contract.grammar_compiler import GrammarAccount, GrammarError
from model.contract.messages import (
    AdapterLoaded,
    AddRequest,
    EngineReady,
    SequenceOutput,
    StepOutputs,
    TokenLogprob,
)
from model.contract.watchdog import Watchdog
from model.distributed.ranks import ONE_RANK, OutOfStepError, Ranks
from model.execution.checkpoint import ProgressCallback
from model.execution.launched_step import LaunchedStep, ModelRunnerOutput
from model.execution.model_runner import ModelRunner
from model.loop.step_guard import OUT_OF_MEMORY, StepGuard
from model.sampling.grammar_states import CompiledGrammar, GrammarCompiler
from model.sampling.sampler import SampledToken
from model.scheduling.block_manager import BlockManager
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import ScheduledBatch, Sequence, SequenceUpdate
from model.scheduling.speculation import Speculator

logger = logging.getLogger(__name__)

# Beside what the model takes, a step may take so long.
MAX_BLOCKED_S = 0.5

# A grammar mostly takes milliseconds, an adapter seconds.
_GRAMMAR_POLL_S = 0.001
_ADAPTER_POLL_S = 0.02

_NOT_NUMBERS = (
    "The model's output is not a number for this prompt; the checkpoint may be damaged, or needs --dtype float32."
)


class Engine:
    """Continuous batching over one checkpoint.

    Where the backend works on its own (a GPU), steps overlap: the next one is planned and launched while the tokens of
    the one before travel. A sequence that turns out to have ended has then taken part in one step too many; nobody sees
    what that made of it.

    Args:
        config: settings.
        on_progress: called with (bytes read, bytes in all) while the checkpoint loads.
        ranks: that share the checkpoint; this one leads them.

    Attributes:
        watchdog: of the loop, for whoever runs it.

    Raises:
        StartupError: the checkpoint or a setting is wrong.
    """

    def __init__(
        self, config: EngineConfig, on_progress: ProgressCallback | None = None, ranks: Ranks = ONE_RANK
    ) -> None:
        started = time.monotonic()
        self._runner = ModelRunner(config, on_progress, ranks)
        self._worker = worker = self._runner.worker
        self._limits = limits = worker.limits
        costs = self._runner.row_costs
        self._speculator = None if costs is None else Speculator(costs, worker.model_config.vocab_size)
        self._scheduler = Scheduler(
            BlockManager(
                worker.cache.num_blocks,
                config.block_size,
                config.enable_prefix_caching,
                largest_window=worker.model_config.largest_window,
                max_step_tokens=limits.max_num_batched_tokens,
                max_steps_ahead=limits.max_steps_ahead,
            ),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=worker.max_model_len,
            max_running_per_caller=config.max_running_per_caller,
            allow_priority=config.allow_priority,
            max_step_s=limits.max_step_ms / 1000,
            speculator=self._speculator,
            num_parts=limits.max_steps_ahead + 1 if limits.is_pipelined else 1,
        )
        self._guard = StepGuard(self._runner.execute, self._runner.undo, limits.max_num_batched_tokens)
        self._has_reported_first: set[int] = set()
        self._prompt_logprobs: dict[int, list[TokenLogprob]] = {}
        self._refused: list[SequenceOutput] = []
        self._grammar_compiler = GrammarCompiler(config.checkpoint_path, self._worker.model_config.vocab_size)
        self._compiling: list[tuple[Future[CompiledGrammar], list[Sequence]]] = []
        self._adapter_loader = AdapterLoader(self._worker.adapters, ranks.place.num_processes)
        self._adapter_of_seq: dict[int, int] = {}
        self._in_flight: deque[LaunchedStep] = deque()
        self._last_finished_s = 0.0
        self._is_idle = True
        self._adding = "-"
        self.watchdog = Watchdog("the engine's loop", MAX_BLOCKED_S, lambda: self._adding)
        self._load_s = time.monotonic() - started

    @property
    def ready(self) -> EngineReady:
        """What clients need to know about the loaded checkpoint."""
        worker, loaded = self._worker, self._worker.loaded
        return EngineReady(
            max_model_len=worker.max_model_len,
            vocab_size=worker.model_config.vocab_size,
            num_blocks=worker.cache.num_blocks,
            block_size=worker.cache.block_size,
            kv_cache_bytes=worker.kv_cache_bytes,
            weights_bytes=loaded.weights_bytes,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(worker.backend.device),
            load_s=self._load_s,
            adapters=loaded.adapters_loaded,
        )

    def has_work(self) -> bool:
        """Whether a step would do or report anything."""
        is_waiting = self._compiling or self._adapter_loader.is_loading
        return bool(self._refused or is_waiting or self._in_flight) or self._scheduler.has_work()

    def waiting_s(self) -> float | None:
        """How long to wait before it is worth a look whether a grammar or an adapter is ready, in seconds.

        Returns:
            None where a step would do something now, or there is nothing to wait for.
        """
        grammars, loader = self._runner.grammars, self._adapter_loader
        if not self._is_idle or self._refused or self._in_flight:
            return None
        if self._compiled_some() or grammars.has_news() or loader.has_news:
            return None
        if self._compiling or grammars.late:
            return _GRAMMAR_POLL_S
        return _ADAPTER_POLL_S if loader.is_loading else None

    def _compiled_some(self) -> bool:
        return any(future.done() for future, _ in self._compiling)

    def add_request(self, request: AddRequest) -> None:
        """Queues a request's choices. One that can never run ends with an "error" output of the next step."""
        self._adding = request.request_id
        vocab_size = self._worker.model_config.vocab_size
        if not all(0 <= token_id < vocab_size for token_id in request.prompt_ids):
            # On a GPU such an id would end not this request but the process.
            message = f"The prompt has ids that do not exist; they go from 0 to {vocab_size - 1}."
            self._refused += [SequenceOutput(seq_id, [], "error", error=message) for seq_id in request.seq_ids]
            return
        if request.adapter_id and not self._use_adapter(request):
            message = "The adapter was unloaded, or could not be loaded again when the engine restarted."
            self._refused += [SequenceOutput(seq_id, [], "error", error=message) for seq_id in request.seq_ids]
            return
        alpha = self._worker.model_config.rope_alpha(len(request.prompt_ids))
        sequences = [
            Sequence(
                seq_id,
                request.request_id,
                request.prompt_ids,
                request.sampling,
                caller=request.caller,
                weight=request.weight,
                priority=request.priority,
                round=request.num_before + index,
                choice_index=index,
                rope_alpha=alpha,
                cache_salt=request.cache_salt,
                is_background=request.is_background,
                adapter_id=request.adapter_id,
            )
            for index, seq_id in enumerate(request.seq_ids)
        ]
        if self._speculator is not None:
            self._speculator.start(sequences, request.prompt_ids, request.prediction_ids)
        if request.sampling.grammar is not None:
            self._compiling.append((self._grammar_compiler.compile(request.sampling.grammar), sequences))
        else:
            self._schedule(sequences)

    def _use_adapter(self, request: AddRequest) -> bool:
        """Takes note of who uses an adapter; returns whether it is there to be used."""
        adapters = self._worker.adapters
        if adapters is None or not adapters.knows(request.adapter_id):
            return False
        for seq_id in request.seq_ids:
            self._adapter_of_seq[seq_id] = request.adapter_id
            adapters.add_user(request.adapter_id)
        return True

    def load_adapter(self, adapter: LoadAdapter) -> None:
        """Begins to load an adapter beside the steps; `take_adapter_news` tells what came of it."""
        self._adapter_loader.load(adapter)

    def unload_adapter(self, adapter_id: int) -> None:
        """Refuses new requests for an adapter, and lets it go with the last of those it has."""
        if self._worker.adapters is not None:
            self._worker.adapters.unload(adapter_id)

    def take_adapter_news(self) -> list[AdapterLoaded]:
        """Takes over the adapters that are ready by now, and tells of them and of those that cannot be loaded."""
        return self._adapter_loader.take_over() if self._adapter_loader.has_news else []

    def _schedule(self, sequences: list[Sequence]) -> None:
        try:
            self._scheduler.add(sequences)
        except InvalidRequestError as e:
            self._refuse(sequences, e.message)

    def _refuse(self, sequences: list[Sequence], message: str, reason: str = "error") -> None:
        self._refused += [SequenceOutput(seq.seq_id, [], reason, error=message) for seq in sequences]
        self._forget([seq.seq_id for seq in sequences])

    def _admit_compiled(self) -> None:
        """Schedules the requests whose grammars are ready by now."""
        if not self._compiled_some():
            return
        compiling, self._compiling = self._compiling, []
        for future, sequences in compiling:
            if not future.done():
                self._compiling.append((future, sequences))
                continue
            error = future.exception()
            if error is not None:
                if not isinstance(error, GrammarError):
                    logger.error("a grammar failed to compile", exc_info=error)
                self._refuse(sequences, f"The grammar cannot be used: {error}", "invalid")
                continue
            account = GrammarAccount()
            for seq in sequences:
                self._runner.grammars.start(seq.seq_id, future.result(), account)
            self._schedule(sequences)

    def _report_late(self) -> list[SequenceOutput]:
        """Ends the sequences whose grammar said so only after their step."""
        ended = self._runner.grammars.take_ended()
        outputs = []
        for seq in self._scheduler.abort(ended):
            message = ended[seq.seq_id]
            outputs.append(SequenceOutput(seq.seq_id, [], "stop" if message is None else "invalid", error=message))
        self._forget(list(ended))
        return outputs

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Forgets sequences and frees their blocks at once; no output comes for them any more."""
        ids = set(seq_ids)
        self._scheduler.abort(ids)
        self._forget(list(ids))
        self._refused = [output for output in self._refused if output.seq_id not in ids]
        compiling = [(future, [seq for seq in seqs if seq.seq_id not in ids]) for future, seqs in self._compiling]
        self._compiling = [(future, seqs) for future, seqs in compiling if seqs]

    def step(self) -> StepOutputs:
        """Runs one step of all that fits and reports what it did; returns at once when there is nothing to do."""
        self._adding = "-"
        self._admit_compiled()
        outputs, self._refused = self._refused, []
        outputs += self._report_late()
        outputs += self._step_ahead() if self._limits.max_steps_ahead else self._step_guarded()
        outputs += self._refused
        self._refused = []
        stats = self._scheduler.stats()
        num_compiling = sum(len(sequences) for _, sequences in self._compiling)
        return StepOutputs(
            outputs,
            replace(
                stats,
                num_waiting=stats.num_waiting + num_compiling,
                longest_blocked_s=self.watchdog.longest_s,
                num_blocked_total=self.watchdog.num_blocked,
            ),
        )

    def _step_guarded(self) -> list[SequenceOutput]:
        """Plans a step, runs it and waits for it; where it fails, the sequence at fault ends and the others go on."""
        batch = self._plan()
        if not batch:
            return []
        started = time.monotonic()
        with self.watchdog.excused():
            result = self._guard.run(batch)
        if not result.batch:
            return []
        if result.batch is batch and not result.failures:
            self._note_time(result.batch, started)
        self._scheduler.update_after_schedule(result.batch)
        return self._commit(result)

    def _plan(self, left_out: Collection[int] = ()) -> ScheduledBatch:
        self._scheduler.max_num_batched_tokens = self._guard.token_budget
        grammars = self._runner.grammars
        batch = self._scheduler.schedule(grammars.late.union(left_out), grammars.forced)
        self._is_idle = not batch
        return batch

    def _step_ahead(self) -> list[SequenceOutput]:
        """Launches a step, then waits for the oldest one where as many are in flight as may be."""
        outputs: list[SequenceOutput] = []
        batch = self._plan(self._unread())
        if self._in_flight and not batch:  # nothing else to do meanwhile
            outputs += self._finish_step()
            batch = self._plan(self._unread())
        if not batch:
            return outputs
        with self.watchdog.excused():
            launched = self._launch(batch)
        if not isinstance(launched, Exception):
            self._in_flight.append(launched)
            return outputs + self._finish_step() if len(self._in_flight) > self._limits.max_steps_ahead else outputs
        while self._in_flight:
            outputs += self._finish_step()
        if not self._guard.shrink_for(batch.num_tokens, launched):
            outputs += self._step_guarded()  # finds out whose fault it was
        return outputs

    def _unread(self) -> set[int]:
        """The sequences in flight that can go on only when the host has seen their token.

        Those with a grammar, which says what follows, run in every other step, all others in each. Between stages no
        token is known before the last of them has made it.
        """
        sampled = [entry for step in self._in_flight for entry in step.batch if entry.needs_sampling]
        if not self._limits.is_pipelined:
            sampled = [entry for entry in sampled if entry.sampling.grammar is not None]
        return {entry.seq_id for entry in sampled}

    def _launch(self, batch: ScheduledBatch) -> LaunchedStep | Exception:
        """Starts a step, or returns why it cannot be started."""
        try:
            launched = self._runner.launch(batch)
        except (torch.AcceleratorError, OutOfStepError):
            raise  # nothing on this device, or between these ranks, works from here on
        except Exception as error:
            self._runner.undo([entry.seq_id for entry in batch])
            return error.with_traceback(None)  # which would hold on to the step's tensors
        self._scheduler.update_after_schedule(batch)
        return launched

    def _finish_step(self) -> list[SequenceOutput]:
        """Waits for the oldest step in flight and reports what it did."""
        launched = self._in_flight.popleft()
        try:
            with self.watchdog.excused():
                result = launched.wait()
        except (torch.AcceleratorError, OutOfStepError):
            raise  # nothing on this device, or between these ranks, works from here on
        except Exception as error:
            return self._commit(self._guard.give_up(launched.batch, error))
        self._guard.note_success()
        self._note_time(launched.batch, max(launched.launched_s, self._last_finished_s))
        self._last_finished_s = time.monotonic()
        return self._commit(result)

    def _note_time(self, batch: ScheduledBatch, started_s: float) -> None:
        # Steps with drafts have no prompts, and are known by the number of their rows.
        is_decode = batch.num_decodes == len(batch)
        num_rows = batch.num_tokens if is_decode else sum(e.num_rows for e in batch.entries[: batch.num_decodes])
        num_prompt_tokens = batch.num_tokens - num_rows
        self._scheduler.prefill_budget.note(num_rows, num_prompt_tokens, time.monotonic() - started_s)

    def _commit(self, result: ModelRunnerOutput) -> list[SequenceOutput]:
        """Reports what a step did; it was advanced before."""
        outputs: list[SequenceOutput] = []
        tokens: dict[int, list[SampledToken]] = {}
        broken = dict(result.failures)
        for entry, sampled, scores in zip(result.batch, result.tokens, result.prompt_logprobs, strict=True):
            seq_id = entry.seq_id
            if not self._scheduler.is_alive(seq_id):
                self._forget([seq_id])  # it had ended by the time this was launched, or was aborted since
                continue
            if scores is not None:
                self._keep_scores(seq_id, entry.start, scores)
                if any(math.isnan(score.logprob) for score in scores):
                    broken[seq_id] = _NOT_NUMBERS
            tokens[seq_id] = sampled
            if sampled and not sampled[0].is_valid:
                broken[seq_id] = _NOT_NUMBERS
        unfollowed = {seq_id: message for seq_id, message in result.ended.items() if message is not None}
        for seq in self._scheduler.abort(broken | unfollowed):
            message = broken.get(seq.seq_id) or unfollowed[seq.seq_id]
            logger.error("request %s: %s", seq.request_id, message)
            reason = "abort" if message == OUT_OF_MEMORY else "error" if seq.seq_id in broken else "invalid"
            outputs.append(SequenceOutput(seq.seq_id, [], reason, error=message))
            self._forget([seq.seq_id])
        ids = [[token.token_id for token in sampled] for sampled in result.tokens]
        for update in self._scheduler.update_from_output(result.batch, ids, result.ended):
            logprobs = [token.logprob for token in tokens[update.seq.seq_id] if token.logprob is not None]
            outputs.append(self._output(update, logprobs or None))
            if update.finish_reason is not None:
                self._forget([update.seq.seq_id])
        return outputs

    def _output(self, update: SequenceUpdate, logprobs: list[TokenLogprob] | None) -> SequenceOutput:
        seq = update.seq
        num_expected = 0 if self._speculator is None else self._speculator.num_newly_expected(seq.seq_id)
        if seq.seq_id in self._has_reported_first:
            _, token_ids, finish_reason, stop_token_id = update
            if num_expected:
                return SequenceOutput(
                    seq.seq_id, token_ids, finish_reason, stop_token_id, logprobs, num_expected_tokens=num_expected
                )
            return SequenceOutput(seq.seq_id, token_ids, finish_reason, stop_token_id, logprobs)
        self._has_reported_first.add(seq.seq_id)
        assert seq.first_scheduled_time_s is not None
        return SequenceOutput(
            seq.seq_id,
            update.token_ids,
            update.finish_reason,
            update.stop_token_id,
            logprobs,
            num_cached_tokens=seq.num_cached_tokens,
            prompt_logprobs=self._prompt_logprobs.pop(seq.seq_id, None),
            queue_time_s=seq.first_scheduled_time_s - seq.arrival_time_s,
            num_expected_tokens=num_expected,
        )

    def _keep_scores(self, seq_id: int, start: int, scores: list[TokenLogprob]) -> None:
        kept = self._prompt_logprobs.setdefault(seq_id, [])
        # A preempted prefill begins again; what it computes twice is the same.
        del kept[start:]
        kept += scores

    def _forget(self, seq_ids: list[int]) -> None:
        self._runner.forget(seq_ids)
        if self._speculator is not None:
            self._speculator.forget(seq_ids)
        for seq_id in seq_ids:
            self._has_reported_first.discard(seq_id)
            adapter_id = self._adapter_of_seq.pop(seq_id, None)
            if adapter_id is not None and self._worker.adapters is not None:
                self._worker.adapters.remove_user(adapter_id)
            self._prompt_logprobs.pop(seq_id, None)
