"""Owns the device side of the loop: the model, its KV cache, the sampler. Runs what the scheduler planned.

It must not know requests or text; it sees scheduled sequences and gives back tokens.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch

from model.architectures.qwen import QWenLMHeadModel
from model.backends import make_backend
from model.backends.base import Backend
from model.backends.torch_backend import require_known_cache_dtype
from model.checkpoint import ProgressCallback, load_weights
from model.config import ModelConfig
from model.engine_config import EngineConfig
from model.errors import ConfigError
from model.forward_batch import ForwardBatch, SequenceSpan
from model.grammar import GrammarStates
from model.kv_cache import KVCache, allocate_kv_cache, kv_cache_block_bytes
from model.messages import TokenLogprob
from model.quantization import linear_maker
from model.sampler import SampledToken, Sampler, SamplingRow, prompt_logprobs, stream_key
from model.scheduler import ScheduledBatch, ScheduledSequence

logger = logging.getLogger(__name__)

# Prompt log-probabilities need logits of every position; this many rows of the vocabulary at a time. (More would be
# faster arithmetic, but arrays of over 32 MiB cost malloc more in page faults than that saves.)
_LOGIT_ROWS_PER_PASS = 32

_GIB = 1 << 30


class StepResult(NamedTuple):
    """What the device made of a batch; both lists are aligned with its entries.

    Attributes:
        tokens: the next token where one was wanted, else None.
        prompt_logprobs: of the positions start + 1 ... of the chunk where asked for, else None.
        completed: ids of sequences whose grammar the new token completed.
    """

    tokens: list[SampledToken | None]
    prompt_logprobs: list[list[TokenLogprob] | None]
    completed: set[int]


class ModelRunner:
    """A loaded checkpoint that runs steps.

    Args:
        config: of the engine.
        on_progress: called with (bytes read, bytes in all) while loading.

    Attributes:
        model_config: the checkpoint's numbers.
        dtype: of the activations.
        num_blocks: KV cache blocks; `block_size` tokens each.
        max_model_len: prompt and reply together.
        weights_bytes: of the loaded parameters.
        grammars: states of the sequences that have one.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: a setting cannot be met (device, dtype, memory).
    """

    def __init__(self, config: EngineConfig, on_progress: ProgressCallback | None = None) -> None:
        folder = Path(config.checkpoint_path)
        self.model_config = ModelConfig.from_folder(folder)
        self.backend: Backend = make_backend(config.device)
        self.dtype = self.backend.resolve_dtype(config.dtype, self.model_config.declared_dtype)
        self.max_num_batched_tokens = config.max_num_batched_tokens or self.backend.default_max_num_batched_tokens()
        self.max_num_seqs = config.max_num_seqs
        with torch.inference_mode():
            self.model = QWenLMHeadModel(
                self.model_config, linear_maker(self.model_config, self.backend, self.dtype), self.backend, self.dtype
            )
            self.weights_bytes = load_weights(self.model, folder, self.backend.device, on_progress)
            self.backend.set_num_threads(config.num_threads, self.weights_bytes)
            self._cache = self._make_cache(config)
        self.num_blocks = self._cache.num_blocks
        self.block_size = config.block_size
        self.kv_cache_bytes = self._cache.num_bytes
        self._sampler = Sampler(
            self.model_config.vocab_size, self.backend.device, config.max_num_seqs, self.max_model_len
        )
        self.grammars = GrammarStates(self.model_config.vocab_size)
        # Requests without a seed draw from streams named by it and their sequence's id.
        self._seed = int.from_bytes(os.urandom(8), "little") if config.seed is None else config.seed

    def _make_cache(self, config: EngineConfig) -> KVCache:
        """Sizes the pool, and with it the longest sequence, from the memory that is free now."""
        model_config = self.model_config
        dtype = self.dtype if config.kv_cache_dtype == "auto" else require_known_cache_dtype(config.kv_cache_dtype)
        block_bytes = kv_cache_block_bytes(model_config, config.block_size, dtype)
        max_model_len = config.max_model_len or model_config.default_max_model_len
        blocks_per_sequence = -(-max_model_len // config.block_size)
        if config.kv_cache_memory_bytes is not None:
            num_blocks = config.kv_cache_memory_bytes // block_bytes
        else:
            free = self.backend.available_memory_bytes(config.gpu_memory_utilization)
            # More than all sequences at full length could never be used.
            num_blocks = min(free // block_bytes, blocks_per_sequence * config.max_num_seqs)
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
            num_blocks * block_bytes / _GIB,
            self.weights_bytes / _GIB,
            str(self.dtype).removeprefix("torch."),
            self.backend.device,
        )
        try:
            cache = allocate_kv_cache(
                model_config,
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

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Runs one step.

        Args:
            batch: not empty.

        Returns:
            Tokens and prompt log-probabilities of its entries.
        """
        entries = batch.entries
        spans = [_span(entry) for entry in entries]
        forward_batch = ForwardBatch.build(spans, self.model_config, self.block_size, self.backend.device)
        hidden = self.model(forward_batch, self._cache)
        hidden = hidden[forward_batch.logit_rows]
        result = StepResult([None] * len(entries), [None] * len(entries), set())
        sampled_rows: list[int] = []
        sampled_entries: list[int] = []
        row = 0
        for index, (entry, span) in enumerate(zip(entries, spans, strict=True)):
            if entry.seq.needs_prompt_logits:
                result.prompt_logprobs[index] = self._score(hidden[row : row + span.num_logit_rows], entry)
            row += span.num_logit_rows
            if entry.needs_sampling:
                sampled_rows.append(row - 1)
                sampled_entries.append(index)
        if sampled_rows:
            chosen = hidden if len(sampled_rows) == len(hidden) else hidden[sampled_rows]
            rows = [self._sampling_row(entries[i]) for i in sampled_entries]
            masks = self.grammars.masks([row.seq_id for row in rows])
            tokens = self._sampler.sample(self.model.logits(chosen), rows, masks)
            for index, token in zip(sampled_entries, tokens, strict=True):
                result.tokens[index] = token
                seq_id = entries[index].seq.seq_id
                if self.grammars.advance(seq_id, token.token_id):
                    result.completed.add(seq_id)
        return result

    def _sampling_row(self, entry: ScheduledSequence) -> SamplingRow:
        seq = entry.seq
        key = 0
        if seq.sampling.temperature > 0:
            seed = stream_key(self._seed, seq.seq_id) if seq.sampling.seed is None else seq.sampling.seed
            key = stream_key(seed, seq.choice_index)
        return SamplingRow(seq.seq_id, seq.sampling, seq.token_ids, seq.num_prompt_tokens, key)

    def _score(self, hidden: torch.Tensor, entry: ScheduledSequence) -> list[TokenLogprob]:
        """Log-probabilities of the prompt tokens that follow the chunk's positions."""
        seq = entry.seq
        num_top = seq.sampling.num_prompt_logprobs or 0
        next_ids = seq.token_ids[entry.start + 1 : entry.start + 1 + entry.num_tokens]
        scores: list[TokenLogprob] = []
        for low in range(0, len(next_ids), _LOGIT_ROWS_PER_PASS):
            ids = next_ids[low : low + _LOGIT_ROWS_PER_PASS]
            scores += prompt_logprobs(self.model.logits(hidden[low : low + len(ids)]), ids, num_top)
        return scores


def _span(entry: ScheduledSequence) -> SequenceSpan:
    seq = entry.seq
    if seq.needs_prompt_logits:
        num_logit_rows = entry.num_tokens
    else:
        num_logit_rows = int(entry.needs_sampling)
    return SequenceSpan(
        token_ids=seq.token_ids[entry.start : entry.start + entry.num_tokens],
        start=entry.start,
        rope_alpha=seq.rope_alpha,
        block_table=seq.block_table,
        num_logit_rows=num_logit_rows,
    )
