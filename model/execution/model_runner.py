"""Runs what the scheduler planned, on the leading rank: lays a step out, has all ranks compute it, and samples.

It must not know requests or text; it sees scheduled sequences and gives back tokens.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import torch

from model.backends.base import HostCopy
from model.contract.engine_config import EngineConfig
from model.contract.messages import TokenLogprob
from model.distributed.ranks import ONE_RANK, OutOfStepError, Ranks
from model.distributed.step import RankStep
from model.execution.checkpoint import ProgressCallback
from model.execution.forward_batch import SequenceSpan
from model.execution.launched_step import LaunchedStep, ModelRunnerOutput, accept
from model.execution.row_costs import measure_row_costs
from model.execution.step_layout import LOGIT_ROWS_PER_PASS, logit_passes, logit_rows, spans_of
from model.execution.worker import Worker
from model.sampling.grammar_states import GrammarStates
from model.sampling.sampler import SampledToken, SamplerOutput, prompt_logprobs
from model.sampling.sampling_row import SamplingRow, stream_key
from model.scheduling.sequence import UNKNOWN_TOKEN, ScheduledBatch, ScheduledSequence
from model.scheduling.speculation import RowCosts

logger = logging.getLogger(__name__)


class ModelRunner:
    """The leader's side of each step; sampling and grammars are its alone. It takes what `Worker` takes.

    Attributes:
        worker: this rank's part of the model.
        row_costs: the time that steps of few rows take; None where no tokens are to be guessed.
        grammars: states of the sequences that have one.
    """

    def __init__(
        self, config: EngineConfig, on_progress: ProgressCallback | None = None, ranks: Ranks = ONE_RANK
    ) -> None:
        self.worker = worker = Worker(config, on_progress, ranks)
        self._sampler = worker.loaded.make_sampler(config.max_num_seqs, worker.max_model_len)
        self._row_of_seq: dict[int, int] = {}  # where the last launched step left each sequence's id
        speculates = worker.limits.speculates
        self.row_costs = self._measure_row_costs() if speculates else None
        self.grammars = GrammarStates(worker.model_config.vocab_size, speculates=speculates)
        # Requests without a seed draw from streams named by it and their sequence's id.
        self._seed = int.from_bytes(os.urandom(8), "little") if config.seed is None else config.seed

    @torch.inference_mode()
    def _measure_row_costs(self) -> RowCosts:
        """Times small steps; as those of a warm-up they write to a block that nothing has been written to yet."""
        worker = self.worker

        def run(num_rows: int, context_len: int) -> None:
            blocks = [0] * -(-(context_len + num_rows) // worker.cache.block_size)
            last = worker.max_model_len - 1  # angles of later positions are not kept on a device
            spans = [SequenceSpan([0], min(context_len + i, last), 1.0, blocks, 1) for i in range(num_rows)]
            step = RankStep(spans, [-1] * num_rows, False, [list(range(num_rows))])
            # How many steps there are is decided by the clock, so only the leader's decides.
            worker.ranks.tell(step)
            worker.model.logits(worker.forward(step)).argmax(-1).tolist()

        costs = measure_row_costs(run, worker.max_model_len)
        logger.info(
            "steps of %s rows take %s ms",
            ", ".join(map(str, costs.num_rows)),
            ", ".join(f"{1000 * seconds:.1f}" for seconds in costs.seconds),
        )
        return costs

    def forget(self, seq_ids: list[int]) -> None:
        """Drops what is kept for sequences that will not run again."""
        self._sampler.forget(seq_ids)
        for seq_id in seq_ids:
            self.grammars.forget(seq_id)

    def undo(self, seq_ids: list[int]) -> None:
        """Drops what a step that failed half-way may have left half-written; the next one makes it anew."""
        self._sampler.forget(seq_ids)
        for seq_id in seq_ids:
            self._row_of_seq.pop(seq_id, None)
        self.worker.backend.release_memory()

    def execute(self, batch: ScheduledBatch) -> ModelRunnerOutput:
        """Runs one step and waits for it."""
        return self.launch(batch).wait()

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """Starts one step, whose sequences may have a token that only the step before knows.

        Where steps go through stages, and this one's device has no queue of its own, its part is left to `wait`: the
        stages before it work meanwhile. Steps are then to be waited for in the order in which they were launched.

        Args:
            batch: not empty.

        Raises:
            OutOfStepError: other ranks have begun this step and wait for what will not come.
        """
        limits = self.worker.limits
        if limits.is_pipelined and limits.max_steps_ahead > 0 and not self.worker.backend.runs_ahead:
            batch = batch.copy()
            step = self._tell(batch)
            return LaunchedStep(batch, lambda: self._run(batch, step)())
        return LaunchedStep(batch, self._run(batch, self._tell(batch)))

    def _tell(self, batch: ScheduledBatch) -> RankStep:
        """Lays out a step, and tells the other ranks of it."""
        entries, worker = batch.entries, self.worker
        self.grammars.look_ahead({entry.seq_id: entry.draft_ids for entry in entries if entry.draft_ids})
        spans: list[SequenceSpan] = []
        sources: list[int] = []  # for each span, which row of the step before sampled its last token, or -1
        for entry in entries:
            slot = -1 if worker.adapters is None else worker.adapters.slot_of(entry.adapter_id)
            spans += spans_of(entry, slot)
            sources.append(self._source(entry))
            if entry.draft_ids:
                sources += [-1] * len(entry.draft_ids)
        graphs = worker.graphs_for(spans)
        is_decode = len(entries) == batch.num_decodes
        is_replayed = graphs is not None and is_decode and len(spans) <= graphs.max_num_rows
        is_shared = worker.ranks.place.num_processes > 1
        step = RankStep(spans, sources, is_replayed, logit_passes(entries) if is_shared and not is_replayed else [])
        if is_shared:
            worker.ranks.tell(step)
        return step

    def _source(self, entry: ScheduledSequence) -> int:
        return self._row_of_seq[entry.seq_id] if entry.token_ids[-1] == UNKNOWN_TOKEN else -1

    @torch.inference_mode()
    def _run(self, batch: ScheduledBatch, step: RankStep) -> Callable[[], ModelRunnerOutput]:
        """Does the leader's part of a step; returns what waits for its results."""
        try:
            logits, scores = self._compute(batch, step)
        except Exception as error:
            if self.worker.ranks.place.num_processes > 1:
                raise OutOfStepError(f"a step failed that other ranks take part in: {error}") from error
            raise
        if logits is None:
            return lambda: ModelRunnerOutput.empty(batch)._replace(prompt_logprobs=scores)
        sample = self._sample(logits, [entry for entry in batch.entries if entry.needs_sampling])
        if self.worker.limits.max_steps_ahead or self.worker.graphs is not None:
            self.worker.last_ids[: len(sample.ids)].copy_(sample.ids)
        copy = self.worker.backend.copy_to_host(sample.tensors)
        return functools.partial(self._collect, batch, scores, sample, copy)

    def _compute(
        self, batch: ScheduledBatch, step: RankStep
    ) -> tuple[torch.Tensor | None, list[list[TokenLogprob] | None]]:
        """Returns the logits to sample from, [R, vocab_size] float32 if there are some, and each entry's scores."""
        entries, worker = batch.entries, self.worker
        scores: list[list[TokenLogprob] | None] = [None] * len(entries)
        worker.share_last_ids(step)
        if step.is_replayed:
            return worker.replay(step), scores
        hidden = worker.forward(step)
        # As they were told: by now an adapter may be gone, with its sequence.
        slots = [span.adapter_slot for span in step.spans for _ in range(span.num_logit_rows)]
        if batch.num_decodes == len(entries):
            return worker.logits(hidden, slots), scores
        scored, sampled = logit_rows(entries)
        for index, rows in scored.items():
            scores[index] = self._score(hidden[rows.start : rows.stop], entries[index], slots[rows.start])
        if not sampled:
            return None, scores
        if len(sampled) < len(hidden):
            hidden, slots = hidden[worker.to_device(sampled)], [slots[row] for row in sampled]
        return worker.logits(hidden, slots), scores

    def _score(self, hidden: torch.Tensor, entry: ScheduledSequence, slot: int) -> list[TokenLogprob]:
        """Log-probabilities of the prompt tokens that follow the chunk's positions, for an adapter's slot."""
        num_top = entry.sampling.num_prompt_logprobs or 0
        next_ids = entry.token_ids[entry.start + 1 : entry.end + 1]
        scores: list[TokenLogprob] = []
        for low in range(0, len(next_ids), LOGIT_ROWS_PER_PASS):
            ids = next_ids[low : low + LOGIT_ROWS_PER_PASS]
            logits = self.worker.logits(hidden[low : low + len(ids)], [slot] * len(ids))
            scores += prompt_logprobs(logits, ids, num_top)
        return scores

    def _sample(self, logits: torch.Tensor, entries: list[ScheduledSequence]) -> SamplerOutput:
        rows: list[SamplingRow] = []
        row_of_seq = {}
        for entry in entries:
            row_of_seq[entry.seq_id] = len(rows)
            row = self._sampling_row(entry)
            rows.append(row)
            if entry.draft_ids:
                drafts = tuple(entry.draft_ids)
                rows += [row._replace(draft_ids=drafts[:i]) for i in range(1, len(drafts) + 1)]
        self._row_of_seq = row_of_seq
        has_grammars = self.grammars.follows_any
        masks = self.grammars.masks([(row.seq_id, len(row.draft_ids)) for row in rows]) if has_grammars else None
        return self._sampler.launch(logits, rows, masks, self.worker.last_ids)

    def _sampling_row(self, entry: ScheduledSequence) -> SamplingRow:
        sampling = entry.sampling
        key = 0
        if sampling.temperature > 0:
            seed = stream_key(self._seed, entry.seq_id) if sampling.seed is None else sampling.seed
            key = stream_key(seed, entry.choice_index)
        return SamplingRow(
            entry.seq_id, sampling, entry.token_ids, entry.num_prompt_tokens, key, self._source(entry)
        )

    def _collect(
        self, batch: ScheduledBatch, scores: list[list[TokenLogprob] | None], sample: SamplerOutput, copy: HostCopy
    ) -> ModelRunnerOutput:
        """Waits for the device, keeps the tokens that stand, and has grammars follow them."""
        entries, rows = batch.entries, sample.read(copy())
        if len(rows) == len(entries):  # each has one: no drafts, as they come in steps that sample all
            tokens = [[row] for row in rows]
        else:
            tokens, first = [], 0
            for entry in entries:
                end = first + entry.needs_sampling + len(entry.draft_ids)
                tokens.append(self._accepted(entry, rows[first:end]) if entry.draft_ids else rows[first:end])
                first = end
        ended: dict[int, str | None] = {}
        if self.grammars.follows_any:
            sampled = [(entry, new) for entry, new in zip(entries, tokens, strict=True) if new]
            last = {e.seq_id for e, new in sampled if e.end + len(new) - e.num_prompt_tokens >= e.sampling.max_tokens}
            ids = ((entry.seq_id, [token.token_id for token in new]) for entry, new in sampled)
            ended = self.grammars.advance(ids, last)
        return ModelRunnerOutput(batch, tokens, scores, ended, {})

    def _accepted(self, entry: ScheduledSequence, rows: list[SampledToken]) -> list[SampledToken]:
        num_checkable = self.grammars.num_followed(entry.seq_id, len(entry.draft_ids))
        return accept(rows[: 1 + num_checkable], entry.draft_ids)
