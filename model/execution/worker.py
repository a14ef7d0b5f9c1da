"""One rank's part of the model with its KV cache: computes the steps that the leader tells.

It must not know requests, sampling or grammars; it sees spans of tokens and gives back hidden states and logits.
"""

from __future__ import annotations

import itertools

import torch

from model.backends.base import DecodeGraphs, StepContext
from model.contract.engine_config import EngineConfig
from model.contract.sampling_params import SamplingParams
from model.distributed.ranks import ONE_RANK, Ranks
from model.distributed.step import RankStep
from model.execution.cache_sizing import make_cache
from model.execution.checkpoint import ProgressCallback
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.model_loader import load_model
from model.execution.overflow import require_finite
from model.execution.step_limits import StepLimits
from model.sampling.sampling_row import SamplingRow


class Worker:
    """Loads a rank's part, sizes its cache, records steps where the device can, and runs what it is told.

    Args:
        on_progress: called with (bytes read, bytes in all) while loading.

    Attributes:
        max_model_len: the most tokens of prompt and reply together.
        kv_cache_bytes: bytes of the KV cache on all ranks together.
        last_ids: [max_num_sampled_rows] int64, the ids that the last step sampled; a later step may read its tokens
            from there before the host knows them. Only the leader's are current until they are shared.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: a setting cannot be met (device, dtype, memory).
    """

    @torch.inference_mode()
    def __init__(
        self, config: EngineConfig, on_progress: ProgressCallback | None = None, ranks: Ranks = ONE_RANK
    ) -> None:
        self.ranks = ranks
        self.loaded = loaded = load_model(config, ranks, on_progress)
        self.backend, self.model, self.adapters = loaded.backend, loaded.model, loaded.adapters
        self.model_config = loaded.config
        self.limits = StepLimits.of(config, self.backend, ranks.place)
        self.cache, self.max_model_len = make_cache(config, loaded, self.limits, ranks)
        if loaded.dtype == torch.float16:
            require_finite(self.model, self.model_config, self.cache, self.backend.device)
        self.kv_cache_bytes = sum(ranks.numbers(self.cache.num_bytes))
        num_ids = self.limits.max_num_sampled_rows
        self.last_ids = torch.zeros(num_ids, dtype=torch.int64, device=self.backend.device)
        context = self._step_context()
        capture = self.backend.capture_decode
        self.graphs = capture(context) if config.cuda_graphs else None
        has_adapters = self.adapters is not None and self.graphs is not None
        self._graphs_with_adapters = capture(context, with_adapters=True) if has_adapters else None
        self._steps = self.backend.make_steps(context, is_recorded=config.cuda_graphs)
        self._warm_up()

    def _step_context(self) -> StepContext:
        def forward(batch: ForwardBatch) -> torch.Tensor:
            hidden: torch.Tensor = self.model(batch, self.cache)
            return hidden

        return StepContext(
            forward=forward,
            logits=lambda hidden: self.model.logits(hidden),
            config=self.model_config,
            cache=self.cache,
            last_ids=self.last_ids,
            max_model_len=self.max_model_len,
            max_num_tokens=self.limits.max_num_batched_tokens,
            any_rank=self._any_rank if self.ranks.place.num_processes > 1 else None,
        )

    def _any_rank(self, is_true: bool) -> bool:
        return any(self.ranks.numbers(is_true))

    def _warm_up(self) -> None:
        """Runs small steps of every kind, so that no request waits for kernels to be compiled.

        They write to the first block of the cache, which nothing has been written to yet.
        """
        block_size = self.cache.block_size
        # New tokens of each sequence, and how many are before them.
        steps: list[tuple[tuple[int, ...], int]] = [((2, 1), 0)]
        if self.backend.runs_ahead:
            # Only a device with kernels for each size need see them all; a CPU would take seconds for a large model.
            # The last reads its many keys in parts.
            steps += [((20,), 0), ((40,), 0), ((100,), 0), ((1,), min(self.max_model_len, 1024) - 1)]
        for lengths, start in steps:
            spans = [SequenceSpan([0] * n, start, 1.0, [0] * -(-(start + n) // block_size), 1) for n in lengths]
            batch = ForwardBatch.build(spans, self.model_config, block_size, self.backend.device)
            logits = self.model.logits(self.model(batch, self.cache)[batch.logit_rows])
        if not self.ranks.place.is_leader:
            return
        for filters in ({"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 5}):
            sampling = SamplingParams(max_tokens=1, **filters)
            self.loaded.make_sampler(1, 1).launch(logits[:1], [SamplingRow(0, sampling, [0], 1, 0)])

    @torch.inference_mode()
    def follow(self, step: RankStep) -> None:
        """Takes part in a step of the leader's."""
        self.share_last_ids(step)
        if step.is_replayed:
            self.replay(step)
            return
        hidden = self.forward(step)
        for rows in step.passes if self.ranks.place.is_last_stage else ():
            self.model.logits(hidden[self.to_device(rows)])

    def share_last_ids(self, step: RankStep) -> None:
        """Lets all ranks know the tokens that only the leader's device knows, where a step reads some."""
        if any(source >= 0 for source in step.sources):
            self.ranks.share(self.last_ids)

    def graphs_for(self, spans: list[SequenceSpan]) -> DecodeGraphs | None:
        """Returns the recorded steps that serve these rows' adapters, if any do."""
        if self.adapters is None:
            return self.graphs
        slots = [span.adapter_slot for span in spans]
        if all(slot < 0 for slot in slots):
            return self.graphs
        return None if self.adapters.has_own_layers(slots) else self._graphs_with_adapters

    def replay(self, step: RankStep) -> torch.Tensor:
        """Runs a step that was recorded; returns logits [S, vocab_size] float32, overwritten by the next one."""
        graphs = self.graphs_for(step.spans)
        assert graphs is not None, "the leader replays what every rank has recorded"
        return graphs.run(step.spans, step.sources)

    def forward(self, step: RankStep) -> torch.Tensor:
        """Runs the blocks; returns hidden states of the rows whose logits are needed, [R, hidden_size]."""
        spans, sources = step.spans, step.sources
        if self._steps is not None:
            return self._steps.run(spans, sources)
        plan = None if self.adapters is None else self.backend.plan_adapters(spans)
        batch = ForwardBatch.build(spans, self.model_config, self.cache.block_size, self.backend.device, plan)
        if max(sources) >= 0:
            ends = itertools.accumulate(span.num_tokens for span in spans)
            unknown = [(end - 1, source) for end, source in zip(ends, sources, strict=True) if source >= 0]
            rows, places = self.to_device([list(column) for column in zip(*unknown, strict=True)]).unbind(0)
            batch.token_ids[rows] = self.last_ids[places]
        hidden: torch.Tensor = self.model(batch, self.cache)
        return hidden[batch.logit_rows]

    def logits(self, hidden: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """Runs the output layer, or an adapter's own.

        Args:
            hidden: [R, hidden_size].
            slots: R adapter slots; -1 for none.

        Returns:
            [R, vocab_size] float32.
        """
        return self.model.logits(hidden) if self.adapters is None else self.adapters.logits(self.model, hidden, slots)

    def to_device(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        """Moves numbers to the device without waiting for what it is doing."""
        return torch.tensor(numbers).to(self.backend.device, non_blocking=True)
