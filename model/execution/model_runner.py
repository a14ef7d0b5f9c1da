"""Owns the device side of the loop: the model, its KV cache, the sampler. Runs what the scheduler planned.

It must not know requests or text; it sees scheduled sequences and gives back tokens.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch

from model.adapters.loading import load_first, make_store
from model.architectures import make_model
from model.backends import device_of_rank, make_backend, memory_of_rank, num_threads_of_rank
from model.backends.base import MAX_RECORDED_TOKENS, Backend, DecodeGraphs, StepContext
from model.backends.torch_backend import require_known_cache_dtype
from model.contract.attention_windows import num_blocks_kept
from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import TokenLogprob
from model.contract.parallel import require_divisible, share_of_config
from model.contract.sampling_params import SamplingParams
from model.distributed.ranks import ONE_RANK, OutOfStepError, Ranks
from model.distributed.step import RankStep
from model.execution.checkpoint import ProgressCallback, load_weights, stored_rows
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache, allocate_kv_cache, kv_cache_block_bytes
from model.execution.launched_step import DeferredStep, LaunchedStep, StepResult
from model.execution.overflow import require_finite
from model.execution.row_costs import MAX_GUESSED_ROWS, measure_row_costs
from model.quantization import linear_maker
from model.quantization.at_load import quantize_at_load
from model.sampling.grammar_states import GrammarStates
from model.sampling.sampler import Sampler, SamplerOutput, prompt_logprobs
from model.sampling.sampling_row import SamplingRow, stream_key
from model.scheduling.sequence import UNKNOWN_TOKEN, ScheduledBatch, ScheduledSequence
from model.scheduling.speculation import RowCosts

logger = logging.getLogger(__name__)

# Prompt log-probabilities need logits of every position; this many rows of the vocabulary at a time. (More would be
# faster arithmetic, but arrays of over 32 MiB cost malloc more in page faults than that saves.)
_LOGIT_ROWS_PER_PASS = 32

# Recorded decode steps of all batch sizes have together this many times the logits of the largest (those with adapters
# as much once more), and this beside.
_GRAPH_LOGITS = 6
_GRAPH_BYTES = 512 << 20

_GIB = 1 << 30


class ModelRunner:
    """A loaded checkpoint that runs steps.

    Where several ranks share the checkpoint each has a runner. The leader's plans nothing but tells the others what it
    launches (`launch`), and they take part (`follow`); sampling and grammars are its alone.

    Args:
        config: of the engine.
        on_progress: called with (bytes read, bytes in all) while loading.
        ranks: that share the checkpoint.

    Attributes:
        model_config: the checkpoint's numbers.
        dtype: of the activations.
        num_blocks: KV cache blocks; `block_size` tokens each.
        max_steps_ahead: steps that may be under way while another is planned.
        is_pipelined: whether those are on stages of the model, so that no two of them may want the same sequence's next
            token.
        max_model_len: prompt and reply together.
        weights_bytes: of the loaded parameters, those of all ranks.
        grammars: states of the sequences that have one.
        row_costs: what steps of few rows take; None where no tokens are to be guessed.
        adapters: those that are loaded; None where there may be none.
        adapters_loaded: what came of those that were to be loaded first.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: a setting cannot be met (device, dtype, memory).
    """

    def __init__(
        self, config: EngineConfig, on_progress: ProgressCallback | None = None, ranks: Ranks = ONE_RANK
    ) -> None:
        folder = Path(config.checkpoint_path)
        self.model_config = read_model_config(folder, stored_rows).with_windows(config.attention_window)
        self._ranks = ranks
        place, num_ranks = ranks.place, ranks.place.num_processes
        require_divisible(self.model_config, place.size, place.num_stages)
        self.backend: Backend = make_backend(
            device_of_rank(config.device, place.number, num_ranks),
            config.kernels,
            batch_invariant=config.batch_invariant,
        )
        self.dtype = self.backend.resolve_dtype(config.dtype, self.model_config.declared_dtype)
        if config.batch_invariant and self.backend.device.type == "cpu" and self.dtype == torch.float16:
            raise ConfigError("--batch-invariant: a CPU multiplies float16 as torch does; use bfloat16 or float32")
        declared, used = self.model_config.declared_dtype, str(self.dtype).removeprefix("torch.")
        if config.dtype == "auto" and declared not in (None, used):
            logger.warning("the checkpoint is %s; on this device it runs in %s (--dtype)", declared, used)
        self.max_num_batched_tokens = config.max_num_batched_tokens or self.backend.default_max_num_batched_tokens()
        self.max_step_ms = self.backend.default_max_step_ms() if config.max_step_ms is None else config.max_step_ms
        self.max_steps_ahead = self._max_steps_ahead(config)
        self.max_num_seqs = config.max_num_seqs
        layers = self._layers_of(config)
        self._own_config = share_of_config(self.model_config, place.size, layers)
        with torch.inference_mode():
            make_linear = linear_maker(self.model_config, self.backend, self.dtype, config.quantization)
            self.model = make_model(self.model_config, make_linear, self.backend, self.dtype, ranks, layers)
            if config.lm_head_dtype == "int8":
                self.model.quantize_head(functools.partial(quantize_at_load, mode="int8"))
            own_bytes = load_weights(self.model, folder, self.backend.device, on_progress)
            self.weights_bytes = sum(ranks.numbers(own_bytes))
            num_threads = num_threads_of_rank(self.backend.device, config.num_threads, num_ranks)
            self.backend.set_num_threads(num_threads, own_bytes)
            cache_dtype = self._cache_dtype(config)
            self.backend.finish_loading(self._own_config, self.dtype, cache_dtype, config.block_size)
            self.adapters = make_store(self.model, self.model_config, self.backend, self.dtype, config)
            self.adapters_loaded = load_first(self.adapters, config)
            # Slots are given out in turn: where one adapter is missing, the next would be taken for it.
            loaded = sum(1 << i for i, adapter in enumerate(self.adapters_loaded[:62]) if adapter.error is None)
            if len(set(ranks.numbers(loaded))) > 1:
                raise RuntimeError("an adapter could be loaded on some ranks only")
            self._cache = self._make_cache(config, cache_dtype)
            if self.dtype == torch.float16:
                require_finite(self.model, self.model_config, self._cache, self.backend.device)
            self.is_pipelined = place.num_stages > 1
            is_overlapping = self.backend.runs_ahead if self.is_pipelined else self.max_steps_ahead > 0
            guesses = config.speculation == "auto" and not is_overlapping
            num_ids = config.max_num_seqs + (MAX_GUESSED_ROWS if guesses else 0)
            self._last_ids = torch.zeros(num_ids, dtype=torch.int64, device=self.backend.device)
            context = self._step_context()
            capture = self.backend.capture_decode
            self._graphs = capture(context) if config.cuda_graphs else None
            has_adapters = self.adapters is not None and self._graphs is not None
            self._graphs_with_adapters = capture(context, with_adapters=True) if has_adapters else None
            self._steps = self.backend.make_steps(context, is_recorded=config.cuda_graphs)
            self._warm_up()
        self.num_blocks = self._cache.num_blocks
        self.block_size = config.block_size
        self.kv_cache_bytes = sum(ranks.numbers(self._cache.num_bytes))
        self._sampler = self._make_sampler(config.max_num_seqs, self.max_model_len)
        self._is_amid_ranks = False
        self._row_of_seq: dict[int, int] = {}  # where the last launched step left each sequence's id
        speculates = guesses and place.is_leader
        self.row_costs = self._measure_row_costs() if speculates else None
        self.grammars = GrammarStates(self.model_config.vocab_size, speculates=speculates)
        # Requests without a seed draw from streams named by it and their sequence's id.
        self._seed = int.from_bytes(os.urandom(8), "little") if config.seed is None else config.seed

    def _layers_of(self, config: EngineConfig) -> range:
        """The layers that this rank's stage has."""
        place = self._ranks.place
        plan = plan_memory(
            self.model_config,
            dtype=str(self.dtype).removeprefix("torch."),
            at_load=config.quantization,
            lm_head_dtype=config.lm_head_dtype,
            num_ranks=place.size,
            num_stages=place.num_stages,
        )
        return plan.layers_of_stages[place.stage]

    def _max_steps_ahead(self, config: EngineConfig) -> int:
        """How many steps may be under way while the next one is planned: on all stages but one, or on the device."""
        if config.run_ahead is False:
            return 0
        runs_ahead = self.backend.runs_ahead if config.run_ahead is None else config.run_ahead
        return self._ranks.place.num_stages - 1 or int(runs_ahead)

    def _make_sampler(self, max_num_seqs: int, max_model_len: int) -> Sampler:
        backend = self.backend
        vocab_size = self.model_config.vocab_size
        return Sampler(vocab_size, backend.device, max_num_seqs, max_model_len, backend.sample_tokens)

    def _warm_up(self) -> None:
        """Runs small steps of every kind, so that no request waits for kernels to be compiled.

        They write to the first block of the cache, which nothing has been written to yet.
        """
        config, block_size, device = self.model_config, self._cache.block_size, self.backend.device
        # New tokens of each sequence, and how many are before them.
        steps: list[tuple[tuple[int, ...], int]] = [((2, 1), 0)]
        if self.backend.runs_ahead:
            # Only a device with kernels for each size need see them all; a CPU would take seconds for a large model.
            # The last reads its many keys in parts.
            steps += [((20,), 0), ((40,), 0), ((100,), 0), ((1,), min(self.max_model_len, 1024) - 1)]
        for lengths, start in steps:
            spans = [SequenceSpan([0] * n, start, 1.0, [0] * -(-(start + n) // block_size), 1) for n in lengths]
            batch = ForwardBatch.build(spans, config, block_size, device)
            logits = self.model.logits(self.model(batch, self._cache)[batch.logit_rows])
        if not self._ranks.place.is_leader:
            return
        for filters in ({"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 5}):
            sampling = SamplingParams(max_tokens=1, **filters)
            self._make_sampler(1, 1).launch(logits[:1], [SamplingRow(0, sampling, [0], 1, 0)])

    @torch.inference_mode()
    def _measure_row_costs(self) -> RowCosts:
        """Times small steps; as those of `_warm_up` they write to a block that nothing has been written to yet."""

        def run(num_rows: int, context_len: int) -> None:
            blocks = [0] * -(-(context_len + num_rows) // self.block_size)
            spans = [SequenceSpan([0], context_len + i, 1.0, blocks, 1) for i in range(num_rows)]
            # How many steps there are is decided by the clock, so only the leader's decides.
            self._ranks.tell(RankStep(spans, [-1] * num_rows, False, [list(range(num_rows))]))
            batch = ForwardBatch.build(spans, self.model_config, self.block_size, self.backend.device)
            self.model.logits(self.model(batch, self._cache)).argmax(-1).tolist()

        costs = measure_row_costs(run, self.max_model_len)
        logger.info(
            "steps of %s rows take %s ms",
            ", ".join(map(str, costs.num_rows)),
            ", ".join(f"{1000 * seconds:.1f}" for seconds in costs.seconds),
        )
        return costs

    def _step_context(self) -> StepContext:
        def forward(batch: ForwardBatch) -> torch.Tensor:
            hidden: torch.Tensor = self.model(batch, self._cache)
            return hidden

        return StepContext(
            forward=forward,
            logits=lambda hidden: self.model.logits(hidden),
            config=self.model_config,
            cache=self._cache,
            last_ids=self._last_ids,
            max_model_len=self.max_model_len,
            max_num_tokens=self.max_num_batched_tokens,
            any_rank=self._any_rank if self._ranks.place.num_processes > 1 else None,
        )

    def _any_rank(self, is_true: bool) -> bool:
        return any(self._ranks.numbers(is_true))

    def _step_bytes(self, config: EngineConfig, dtype: torch.dtype, max_model_len: int) -> int:
        """What steps take beside the weights and the cache: the largest one, and the histories of penalties."""
        num_rows = min(config.max_num_seqs, self.max_num_batched_tokens)
        sampling = SamplingParams(max_tokens=1, top_p=0.9, num_logprobs=1)

        def run(max_num_tokens: int, *, is_sampled: bool) -> None:
            num_tokens = min(max_num_tokens, max_model_len)
            # All its blocks are the same one: what it computes means nothing, what it takes is what a real one takes.
            cache = allocate_kv_cache(
                self._own_config, num_blocks=1, block_size=config.block_size, dtype=dtype, device=self.backend.device
            )
            cache.data.zero_()
            blocks = [0] * -(-num_tokens // config.block_size)
            spans = [
                SequenceSpan([0] * num_tokens, 0, 1.0, blocks, 1)
                for _ in range(max(1, max_num_tokens // num_tokens))
            ]
            batch = ForwardBatch.build(spans, self.model_config, config.block_size, self.backend.device)
            hidden = self.model(batch, cache)
            if not is_sampled:
                return
            rows = [SamplingRow(i, sampling, [0], 1, 0) for i in range(num_rows)]
            logits = self.model.logits(hidden[:1].expand(num_rows, -1).contiguous())
            if self._ranks.place.is_leader:
                self._make_sampler(1, 1).launch(logits, rows)

        num_bytes = self.backend.measure_step_bytes(lambda: run(self.max_num_batched_tokens, is_sampled=True))
        if num_bytes == 0:
            return 0
        # An id and a number for each token that a sequence with penalties may have.
        num_bytes += config.max_num_seqs * max_model_len * 12
        if config.cuda_graphs:
            # Recorded steps keep their logits; what they compute in between they share, but with no other step.
            num_recorded = min(self.max_num_batched_tokens, MAX_RECORDED_TOKENS)
            num_bytes += self.backend.measure_step_bytes(lambda: run(num_recorded, is_sampled=False))
            num_sets = 1 if self.adapters is None else 2
            num_bytes += num_sets * _GRAPH_LOGITS * num_rows * self.model_config.vocab_size * 4 + _GRAPH_BYTES
        return num_bytes

    def _cache_dtype(self, config: EngineConfig) -> torch.dtype:
        if config.kv_cache_dtype == "auto" and not self.model_config.int8_kv_cache:
            return self.dtype
        return require_known_cache_dtype("int8" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype)

    def _make_cache(self, config: EngineConfig, dtype: torch.dtype) -> KVCache:
        """Sizes the pool, and with it the longest sequence, from the memory that is free now on the fullest rank."""
        model_config = self.model_config
        block_bytes = kv_cache_block_bytes(self._own_config, config.block_size, dtype)
        max_model_len = config.max_model_len or model_config.default_max_model_len
        num_unsettled = self.max_num_batched_tokens * (1 + self.max_steps_ahead)
        blocks_per_sequence = num_blocks_kept(
            max_model_len, config.block_size, model_config.largest_window, num_unsettled
        )
        if config.kv_cache_memory_bytes is not None:
            num_blocks = config.kv_cache_memory_bytes // block_bytes
        else:
            step_bytes = self._step_bytes(config, dtype, max_model_len)
            available = self.backend.available_memory_bytes(config.gpu_memory_utilization)
            own = memory_of_rank(self.backend.device, available, self._ranks.place.num_processes)
            if step_bytes:
                logger.info("steps of %d tokens take %.2f GiB", self.max_num_batched_tokens, step_bytes / _GIB)
            # More than all sequences at full length could never be used.
            num_blocks = min(max(0, own - step_bytes) // block_bytes, blocks_per_sequence * config.max_num_seqs)
        num_blocks = min(self._ranks.numbers(num_blocks))
        if num_blocks < 2:
            raise ConfigError(
                f"no memory for a KV cache: a block of {config.block_size} tokens takes {block_bytes:,} bytes and "
                f"{num_blocks} fit; raise --kv-cache-memory or free memory"
            )
        if num_blocks < blocks_per_sequence:
            fitting = num_blocks * config.block_size
            if config.max_model_len is not None:
                raise ConfigError(
                    f"--max-model-len {max_model_len} needs a KV cache of {blocks_per_sequence * block_bytes:,} bytes, "
                    f"but only {num_blocks * block_bytes:,} are there; lower it to {fitting} or raise --kv-cache-memory"
                )
            logger.warning("the KV cache holds %d tokens; sequences are limited to that", fitting)
            max_model_len = fitting
        elif max_model_len > model_config.default_max_model_len:
            logger.warning(
                "--max-model-len %d is beyond the %d tokens this checkpoint is known to handle well",
                max_model_len,
                model_config.default_max_model_len,
            )
        self.max_model_len = max_model_len
        logger.info(
            "KV cache: %d blocks of %d tokens, %.2f GiB; weights: %.2f GiB in %s on %s",
            num_blocks,
            config.block_size,
            num_blocks * sum(self._ranks.numbers(block_bytes)) / _GIB,
            self.weights_bytes / _GIB,
            str(self.dtype).removeprefix("torch."),
            self.backend.device,
        )
        try:
            cache = allocate_kv_cache(
                self._own_config,
                num_blocks=num_blocks,
                block_size=config.block_size,
                dtype=dtype,
                device=self.backend.device,
            )
        except RuntimeError as e:  # torch has no narrower error for memory that cannot be had
            raise ConfigError(
                f"a KV cache of {num_blocks * block_bytes:,} bytes cannot be allocated; lower --kv-cache-memory"
            ) from e
        return cache

    def forget(self, seq_ids: list[int]) -> None:
        """Drops what is kept for sequences that will not run again."""
        self._sampler.forget(seq_ids)
        for seq_id in seq_ids:
            self.grammars.forget(seq_id)

    def undo(self, seq_ids: list[int]) -> None:
        """Drops what a step that failed half-way may have left half-written; the next one makes it anew."""
        self._sampler.forget(seq_ids)
        self._row_of_seq.clear()
        self.backend.release_memory()

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Runs one step and waits for it."""
        return self.launch(batch).wait()

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> LaunchedStep | DeferredStep:
        """Starts one step, whose sequences may have a token that only the step before knows.

        Where steps go through stages, and this one's device has no queue of its own, its part is left to `wait`: the
        stages before it work meanwhile. Steps are then to be waited for in the order in which they were launched.

        Args:
            batch: not empty.

        Raises:
            OutOfStepError: other ranks have begun this step and wait for what will not come.
        """
        is_deferred = self.is_pipelined and self.max_steps_ahead > 0 and not self.backend.runs_ahead
        told = self._tell(batch.copy() if is_deferred else batch)
        if is_deferred:
            return DeferredStep(told.batch, functools.partial(self._run, told))
        return self._run(told)

    @torch.inference_mode()
    def _run(self, told: _ToldStep) -> LaunchedStep:
        """Does the leader's part of a step."""
        self._is_amid_ranks = self._ranks.place.num_processes > 1
        try:
            return self._launch(told)
        except Exception as error:
            if self._is_amid_ranks:
                raise OutOfStepError(f"a step failed that other ranks take part in: {error}") from error
            raise

    @torch.inference_mode()
    def follow(self, step: RankStep) -> None:
        """Takes part in a step of the leader's."""
        self._share_last_ids(step.sources)
        if step.is_replayed:
            graphs = self._graphs_for(step.spans)
            assert graphs is not None, "the leader replays what every rank has recorded"
            graphs.run(step.spans, step.sources)
            return
        hidden = self._forward(step.spans, step.sources)
        for rows in step.passes if self._ranks.place.is_last_stage else ():
            self.model.logits(hidden[self._to_device(rows)])

    def _share_last_ids(self, sources: list[int]) -> None:
        """Lets all ranks know the tokens that only the leader's device knows."""
        if any(source >= 0 for source in sources):
            self._ranks.share(self._last_ids)

    def _tell(self, batch: ScheduledBatch) -> _ToldStep:
        """Lays out a step, and tells the other ranks of it."""
        entries = batch.entries
        self.grammars.look_ahead({entry.seq_id: entry.draft_ids for entry in entries if entry.draft_ids})
        spans = [span for entry in entries for span in _spans(entry, self._slot(entry))]
        sources = [source for entry in entries for source in self._sources(entry)]
        graphs = self._graphs_for(spans)
        if graphs is not None and (len(entries) > batch.num_decodes or len(spans) > graphs.max_num_rows):
            graphs = None
        if self._ranks.place.num_processes > 1:
            passes = [] if graphs is not None else _logit_passes(entries)
            self._ranks.tell(RankStep(spans, sources, graphs is not None, passes))
        return _ToldStep(batch, spans, sources, graphs)

    def _launch(self, told: _ToldStep) -> LaunchedStep:
        batch, spans, sources, graphs = told
        entries = batch.entries
        scores: list[list[TokenLogprob] | None] = [None] * len(entries)
        sampled = [index for index, entry in enumerate(entries) if entry.needs_sampling]
        # Decodes without drafts, as most steps are: each row is sampled.
        is_plain = len(spans) == batch.num_decodes == len(sampled) == len(entries)
        logits: torch.Tensor | None = None
        self._share_last_ids(sources)
        if graphs is not None:
            logits = graphs.run(spans, sources)
        elif is_plain:
            logits = self._logits(self._forward(spans, sources), [span.adapter_slot for span in spans])
        else:
            hidden = self._forward(spans, sources)
            rows: list[int] = []
            slots: list[int] = []
            row = span = 0
            for index, entry in enumerate(entries):
                # As it was told: by now the adapter may be gone, with the sequence.
                first, slot = row, spans[span].adapter_slot
                row += _num_logit_rows(entry)
                span += 1 + len(entry.draft_ids)
                if entry.needs_prompt_logits:
                    scores[index] = self._score(hidden[first:row], entry, slot)
                if entry.needs_sampling:
                    num_rows = 1 + len(entry.draft_ids)
                    rows += range(row - num_rows, row)
                    slots += [slot] * num_rows
            if rows:
                logits = self._logits(hidden if len(rows) == len(hidden) else hidden[self._to_device(rows)], slots)
        self._is_amid_ranks = False
        sample = None if logits is None else self._sample(logits, [entries[index] for index in sampled])
        copy = None
        if sample is not None:
            if self.max_steps_ahead or self._graphs is not None:
                self._last_ids[: len(sample.ids)].copy_(sample.ids)
            copy = self.backend.copy_to_host(sample.tensors)
        num_checkable = [0] * len(sampled)
        if not is_plain:
            for i, entry in enumerate(map(entries.__getitem__, sampled)):
                if entry.draft_ids:
                    num_checkable[i] = self.grammars.num_followed(entry.seq_id, len(entry.draft_ids))
        return LaunchedStep(batch, scores, sampled, num_checkable, sample, copy, self.grammars)

    def _graphs_for(self, spans: list[SequenceSpan]) -> DecodeGraphs | None:
        """The recorded steps that serve these rows' adapters, if any do."""
        if self.adapters is None:
            return self._graphs
        slots = [span.adapter_slot for span in spans]
        if all(slot < 0 for slot in slots):
            return self._graphs
        return None if self.adapters.has_own_layers(slots) else self._graphs_with_adapters

    def _logits(self, hidden: torch.Tensor, slots: list[int]) -> torch.Tensor:
        return self.model.logits(hidden) if self.adapters is None else self.adapters.logits(self.model, hidden, slots)

    def _slot(self, entry: ScheduledSequence) -> int:
        return -1 if self.adapters is None else self.adapters.slot_of(entry.adapter_id)

    def _sources(self, entry: ScheduledSequence) -> list[int]:
        """For each of an entry's spans, which row of the step before sampled its last token, or -1."""
        source = self._source(entry)
        return [source, *[-1] * len(entry.draft_ids)] if entry.draft_ids else [source]

    def _source(self, entry: ScheduledSequence) -> int:
        return self._row_of_seq[entry.seq_id] if entry.token_ids[-1] == UNKNOWN_TOKEN else -1

    def _to_device(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(numbers).to(self.backend.device, non_blocking=True)

    def _forward(self, spans: list[SequenceSpan], sources: list[int]) -> torch.Tensor:
        """The hidden states of the rows whose logits are needed, [R, hidden_size]."""
        if self._steps is not None:
            return self._steps.run(spans, sources)
        plan = None if self.adapters is None else self.backend.plan_adapters(spans)
        batch = ForwardBatch.build(spans, self.model_config, self.block_size, self.backend.device, plan)
        unknown = [(end, source) for end, source in zip(_ends(spans), sources, strict=True) if source >= 0]
        if unknown:
            rows, places = self._to_device([list(column) for column in zip(*unknown, strict=True)]).unbind(0)
            batch.token_ids[rows] = self._last_ids[places]
        hidden: torch.Tensor = self.model(batch, self._cache)
        return hidden[batch.logit_rows]

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
        return self._sampler.launch(logits, rows, masks, self._last_ids)

    def _sampling_row(self, entry: ScheduledSequence) -> SamplingRow:
        sampling = entry.sampling
        key = 0
        if sampling.temperature > 0:
            seed = stream_key(self._seed, entry.seq_id) if sampling.seed is None else sampling.seed
            key = stream_key(seed, entry.choice_index)
        return SamplingRow(
            entry.seq_id, sampling, entry.token_ids, entry.num_prompt_tokens, key, self._source(entry)
        )

    def _score(self, hidden: torch.Tensor, entry: ScheduledSequence, slot: int) -> list[TokenLogprob]:
        """Log-probabilities of the prompt tokens that follow the chunk's positions, for an adapter's slot."""
        num_top = entry.sampling.num_prompt_logprobs or 0
        next_ids = entry.token_ids[entry.start + 1 : entry.end + 1]
        scores: list[TokenLogprob] = []
        for low in range(0, len(next_ids), _LOGIT_ROWS_PER_PASS):
            ids = next_ids[low : low + _LOGIT_ROWS_PER_PASS]
            scores += prompt_logprobs(self._logits(hidden[low : low + len(ids)], [slot] * len(ids)), ids, num_top)
        return scores


class _ToldStep(NamedTuple):
    """A step that all ranks know of.

    Attributes:
        batch: what was planned.
        spans: its new tokens, in row order.
        sources: see `RankStep`.
        graphs: that replay it; None where it runs as any other.
    """

    batch: ScheduledBatch
    spans: list[SequenceSpan]
    sources: list[int]
    graphs: DecodeGraphs | None


def _logit_passes(entries: list[ScheduledSequence]) -> list[list[int]]:
    """The rows that go through the output layer together, as `ModelRunner.launch` takes them: scores, then samples."""
    passes: list[list[int]] = []
    sampled_rows: list[int] = []
    row = 0
    for entry in entries:
        if entry.needs_prompt_logits:
            num_scored = len(entry.token_ids[entry.start + 1 : entry.end + 1])
            scored = list(range(row, row + num_scored))
            passes += [scored[low : low + _LOGIT_ROWS_PER_PASS] for low in range(0, num_scored, _LOGIT_ROWS_PER_PASS)]
        row += _num_logit_rows(entry)
        if entry.needs_sampling:
            sampled_rows += range(row - 1 - len(entry.draft_ids), row)
    return [*passes, sampled_rows] if sampled_rows else passes


def _ends(spans: list[SequenceSpan]) -> list[int]:
    """The row of each sequence's last new token."""
    ends = itertools.accumulate(span.num_tokens for span in spans)
    return [end - 1 for end in ends]


def _spans(entry: ScheduledSequence, adapter_slot: int) -> list[SequenceSpan]:
    """An entry's tokens, and each of its drafts as a decode of its own: computed as it would be when its turn came."""
    start = entry.start
    chunk = SequenceSpan(
        entry.token_ids[start : start + entry.num_tokens],
        start,
        entry.rope_alpha,
        entry.block_table,
        entry.num_tokens if entry.needs_prompt_logits else int(entry.needs_sampling),
        adapter_slot,
    )
    if not entry.draft_ids:
        return [chunk]
    drafts = [
        chunk._replace(token_ids=[token_id], start=entry.end + i) for i, token_id in enumerate(entry.draft_ids)
    ]
    return [chunk, *drafts]


def _num_logit_rows(entry: ScheduledSequence) -> int:
    if entry.needs_prompt_logits:
        return entry.num_tokens
    return entry.needs_sampling + len(entry.draft_ids)
