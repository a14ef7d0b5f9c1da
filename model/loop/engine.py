"""The loop itself, synchronous: add requests, abort them, step.

It joins the scheduler (which knows sequences) and the model runner (which knows tensors), and turns what a step did
into the messages that cross the pipe. It must not know how those travel, nor anything of text or HTTP.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from msgspec.structs import replace

from model.adapters.loading import AdapterLoader
from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.errors import InvalidRequestError
from model.contract.messages import (
    AdapterLoaded,
    AddRequest,
    EngineReady,
    SequenceOutput,
    StepOutputs,
    TokenLogprob,
)
from model.contract.watchdog import Watchdog
from model.distributed.ranks import ONE_RANK, Ranks
from model.execution.checkpoint import ProgressCallback
from model.execution.launched_step import ModelRunnerOutput
from model.execution.model_runner import ModelRunner
from model.loop.grammar_admission import GrammarAdmission
from model.loop.output_builder import OutputBuilder
from model.loop.step_guard import OUT_OF_MEMORY
from model.loop.step_queue import StepQueue
from model.sampling.compiled_grammars import GrammarCompiler
from model.scheduling.block_manager import BlockManager
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import Sequence
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
_NO_ADAPTER = "The adapter was unloaded, or could not be loaded again when the engine restarted."


class Engine:
    """Continuous batching over one checkpoint.

    Args:
        on_progress: called with (bytes read, bytes in all) while the checkpoint loads.
        ranks: the line to the ranks that this one leads.

    Attributes:
        watchdog: measures how long the loop is held up; whoever runs the loop starts it.

    Raises:
        StartupError: the checkpoint or a setting is wrong.
    """

    def __init__(
        self, config: EngineConfig, on_progress: ProgressCallback | None = None, ranks: Ranks = ONE_RANK
    ) -> None:
        self._runner = ModelRunner(config, on_progress, ranks)
        self._worker = worker = self._runner.worker
        self._adding = "-"
        self.watchdog = Watchdog("the engine's loop", MAX_BLOCKED_S, lambda: self._adding)
        costs, vocab_size = self._runner.row_costs, worker.model_config.vocab_size
        self._speculator = None if costs is None else Speculator(costs, vocab_size)
        self._scheduler = self._make_scheduler(config)
        self._steps = StepQueue(self._scheduler, self._runner, self.watchdog)
        self._outputs = OutputBuilder()
        self._refused: list[SequenceOutput] = []
        self._grammars = GrammarAdmission(GrammarCompiler(config.checkpoint_path, vocab_size), self._runner.grammars)
        self._adapter_loader = AdapterLoader(worker.adapters, ranks.place.num_processes)
        self._adapter_of_seq: dict[int, int] = {}

    def _make_scheduler(self, config: EngineConfig) -> Scheduler:
        worker, limits = self._worker, self._worker.limits
        block_manager = BlockManager(
            worker.cache.num_blocks,
            config.block_size,
            config.enable_prefix_caching,
            largest_window=worker.model_config.largest_window,
            max_step_tokens=limits.max_num_batched_tokens,
            max_steps_ahead=limits.max_steps_ahead,
        )
        return Scheduler(
            block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_model_len=worker.max_model_len,
            max_running_per_caller=config.max_running_per_caller,
            allow_priority=config.allow_priority,
            max_step_s=limits.max_step_ms / 1000,
            speculator=self._speculator,
            num_parts=limits.max_steps_ahead + 1 if limits.is_pipelined else 1,
        )

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
            adapters=loaded.adapters_loaded,
        )

    def has_work(self) -> bool:
        """Whether a step would do or report anything."""
        is_waiting = self._grammars.num_waiting or self._adapter_loader.is_loading
        return bool(self._refused or is_waiting or self._steps.in_flight) or self._scheduler.has_work()

    def waiting_s(self) -> float | None:
        """How long to wait before it is worth a look whether a grammar or an adapter is ready, in seconds.

        Returns:
            None where a step would do something now, or there is nothing to wait for.
        """
        states, loader = self._runner.grammars, self._adapter_loader
        if not self._steps.is_idle or self._refused or self._steps.in_flight:
            return None
        if self._grammars.has_news or states.has_news() or loader.has_news:
            return None
        if self._grammars.num_waiting or states.late:
            return _GRAMMAR_POLL_S
        return _ADAPTER_POLL_S if loader.is_loading else None

    def add_request(self, request: AddRequest) -> None:
        """Queues a request's choices. One that can never run ends with an "error" output of the next step."""
        self._adding = request.request_id
        vocab_size = self._worker.model_config.vocab_size
        if not all(0 <= token_id < vocab_size for token_id in request.prompt_ids):
            # On a GPU such an id would end not this request but the process.
            self._refuse(request.seq_ids, f"The prompt has ids that do not exist; they go from 0 to {vocab_size - 1}.")
            return
        if request.adapter_id and not self._use_adapter(request):
            self._refuse(request.seq_ids, _NO_ADAPTER)
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
            self._grammars.add(request.sampling.grammar, sequences)
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
            self._refuse([seq.seq_id for seq in sequences], e.message)

    def _refuse(self, seq_ids: Iterable[int], message: str, reason: str = "error") -> None:
        self._refused += [SequenceOutput(seq_id, [], reason, error=message) for seq_id in seq_ids]
        self._forget(seq_ids)

    def _schedule_compiled(self) -> None:
        """Schedules the requests whose grammars are ready by now."""
        for sequences, error in self._grammars.take_ready():
            if error is None:
                self._schedule(sequences)
            else:
                self._refuse([seq.seq_id for seq in sequences], error, "invalid")

    def _report_late(self) -> list[SequenceOutput]:
        """Ends the sequences whose grammar said so only after their step."""
        ended = self._runner.grammars.take_ended()
        outputs = []
        for seq in self._scheduler.abort(ended):
            message = ended[seq.seq_id]
            outputs.append(SequenceOutput(seq.seq_id, [], "stop" if message is None else "invalid", error=message))
        self._forget(ended)
        return outputs

    def abort(self, seq_ids: Iterable[int]) -> None:
        """Forgets sequences and frees their blocks at once; no output comes for them any more."""
        ids = set(seq_ids)
        self._scheduler.abort(ids)
        self._forget(ids)
        self._refused = [output for output in self._refused if output.seq_id not in ids]
        self._grammars.abort(ids)

    def step(self) -> StepOutputs:
        """Runs one step of all that fits and reports what it did; returns at once when there is nothing to do."""
        self._adding = "-"
        self._schedule_compiled()
        outputs, self._refused = self._refused, []
        outputs += self._report_late()
        for output in self._steps.run():
            outputs += self._commit(output)
        stats = self._scheduler.stats()
        return StepOutputs(
            outputs,
            replace(
                stats,
                num_waiting=stats.num_waiting + self._grammars.num_waiting,
                longest_blocked_s=self.watchdog.longest_s,
                num_blocked_total=self.watchdog.num_blocked,
            ),
        )

    def _commit(self, result: ModelRunnerOutput) -> list[SequenceOutput]:
        """Reports what a step did; it was advanced before."""
        outputs: list[SequenceOutput] = []
        logprobs: dict[int, list[TokenLogprob]] = {}
        broken = dict(result.failures)
        for entry, sampled, scores in zip(result.batch, result.tokens, result.prompt_logprobs, strict=True):
            seq_id = entry.seq_id
            if not self._scheduler.is_alive(seq_id):
                self._forget([seq_id])  # it had ended by the time this was launched, or was aborted since
                continue
            if scores is not None:
                self._outputs.keep_scores(seq_id, entry.start, scores)
                if any(math.isnan(score.logprob) for score in scores):
                    broken[seq_id] = _NOT_NUMBERS
            if sampled and not sampled[0].is_valid:
                broken[seq_id] = _NOT_NUMBERS
            if sampled and sampled[0].logprob is not None:
                logprobs[seq_id] = [token.logprob for token in sampled if token.logprob is not None]
        unfollowed = {seq_id: message for seq_id, message in result.ended.items() if message is not None}
        for seq in self._scheduler.abort(broken | unfollowed):
            message = broken.get(seq.seq_id) or unfollowed[seq.seq_id]
            logger.error("request %s: %s", seq.request_id, message)
            reason = "abort" if message == OUT_OF_MEMORY else "error" if seq.seq_id in broken else "invalid"
            outputs.append(SequenceOutput(seq.seq_id, [], reason, error=message))
            self._forget([seq.seq_id])
        ids = [[token.token_id for token in sampled] for sampled in result.tokens]
        for update in self._scheduler.update_from_output(result.batch, ids, result.ended):
            seq_id = update.seq.seq_id
            num_expected = 0 if self._speculator is None else self._speculator.num_newly_expected(seq_id)
            outputs.append(self._outputs.build(update, logprobs.get(seq_id), num_expected))
            if update.finish_reason is not None:
                self._forget([seq_id])
        return outputs

    def _forget(self, seq_ids: Iterable[int]) -> None:
        seq_ids = list(seq_ids)
        self._runner.forget(seq_ids)
        if self._speculator is not None:
            self._speculator.forget(seq_ids)
        for seq_id in seq_ids:
            self._outputs.forget(seq_id)
            adapter_id = self._adapter_of_seq.pop(seq_id, None)
            if adapter_id is not None and self._worker.adapters is not None:
                self._worker.adapters.remove_user(adapter_id)
