"""How large the KV cache is, and with it the longest sequence: what the weights and the largest step leave."""

from __future__ import annotations

import logging

import torch

from model.backends.base import MAX_RECORDED_TOKENS
from model.backends.devices import memory_of_rank
from model.contract.attention_windows import num_blocks_kept
from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from model.contract.sampling_params import SamplingParams
from model.distributed.ranks import Ranks
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache, allocate_kv_cache, kv_cache_block_bytes
from model.execution.model_loader import LoadedModel
from model.execution.step_limits import StepLimits
from model.sampling.sampling_row import SamplingRow

logger = logging.getLogger(__name__)

# Recorded decode steps of all batch sizes have together this many times the logits of the largest (those with adapters
# as much once more), and this beside.
_GRAPH_LOGITS = 6
_GRAPH_BYTES = 512 << 20

_GIB = 1 << 30


def make_cache(config: EngineConfig, loaded: LoadedModel, limits: StepLimits, ranks: Ranks) -> tuple[KVCache, int]:
    """Allocates the KV cache; all ranks call it together and get as many blocks as the fullest of them can have.

    Returns:
        the cache, and the most tokens of a sequence.

    Raises:
        ConfigError: there is no memory for it, or too little for --max-model-len.
    """
    block_bytes = kv_cache_block_bytes(loaded.own_config, config.block_size, loaded.cache_dtype)
    max_model_len = config.max_model_len or loaded.config.default_max_model_len
    num_unsettled = limits.max_num_batched_tokens * (1 + limits.max_steps_ahead)
    blocks_per_sequence = num_blocks_kept(
        max_model_len, config.block_size, loaded.config.largest_window, num_unsettled
    )
    if config.kv_cache_memory_bytes is not None:
        num_blocks = config.kv_cache_memory_bytes // block_bytes
    else:
        num_bytes = _free_bytes(config, loaded, limits, ranks, max_model_len)
        # More than all sequences at full length could never be used.
        num_blocks = min(num_bytes // block_bytes, blocks_per_sequence * config.max_num_seqs)
    num_blocks = min(ranks.numbers(num_blocks))
    max_model_len = _fitting_length(config, loaded, num_blocks, blocks_per_sequence, block_bytes)
    logger.info(
        "KV cache: %d blocks of %d tokens, %.2f GiB; weights: %.2f GiB in %s on %s",
        num_blocks,
        config.block_size,
        num_blocks * sum(ranks.numbers(block_bytes)) / _GIB,
        loaded.weights_bytes / _GIB,
        str(loaded.dtype).removeprefix("torch."),
        loaded.backend.device,
    )
    try:
        return _allocate(config, loaded, num_blocks), max_model_len
    except RuntimeError as e:  # torch has no narrower error for memory that cannot be had
        raise ConfigError(
            f"a KV cache of {num_blocks * block_bytes:,} bytes cannot be allocated; lower --kv-cache-memory"
        ) from e


def _allocate(config: EngineConfig, loaded: LoadedModel, num_blocks: int) -> KVCache:
    return allocate_kv_cache(
        loaded.own_config,
        num_blocks=num_blocks,
        block_size=config.block_size,
        dtype=loaded.cache_dtype,
        device=loaded.backend.device,
    )


def _fitting_length(
    config: EngineConfig, loaded: LoadedModel, num_blocks: int, blocks_per_sequence: int, block_bytes: int
) -> int:
    """Returns the most tokens of a sequence: as many as were asked for, or as many as the blocks hold."""
    if num_blocks < 2:
        raise ConfigError(
            f"no memory for a KV cache: a block of {config.block_size} tokens takes {block_bytes:,} bytes and "
            f"{num_blocks} fit; raise --kv-cache-memory or free memory"
        )
    default = loaded.config.default_max_model_len
    max_model_len = config.max_model_len or default
    if num_blocks < blocks_per_sequence:
        fitting = num_blocks * config.block_size
        if config.max_model_len is not None:
            raise ConfigError(
                f"--max-model-len {max_model_len} needs a KV cache of {blocks_per_sequence * block_bytes:,} bytes, "
                f"but only {num_blocks * block_bytes:,} are there; lower it to {fitting} or raise --kv-cache-memory"
            )
        logger.warning("the KV cache holds %d tokens; sequences are limited to that", fitting)
        return fitting
    if max_model_len > default:
        logger.warning(
            "--max-model-len %d is beyond the %d tokens this checkpoint is known to handle well", max_model_len, default
        )
    return max_model_len


def _free_bytes(
    config: EngineConfig, loaded: LoadedModel, limits: StepLimits, ranks: Ranks, max_model_len: int
) -> int:
    """Memory of this rank's device that is free now, less what the largest step takes."""
    taken = step_bytes(config, loaded, limits, max_model_len, samples=ranks.place.is_leader)
    if taken:
        logger.info("steps of %d tokens take %.2f GiB", limits.max_num_batched_tokens, taken / _GIB)
    available = loaded.backend.available_memory_bytes(config.gpu_memory_utilization)
    return max(0, memory_of_rank(loaded.backend.device, available, ranks.place.num_processes) - taken)


def step_bytes(
    config: EngineConfig, loaded: LoadedModel, limits: StepLimits, max_model_len: int, *, samples: bool
) -> int:
    """Returns what steps take beside weights and cache: the largest one, recorded ones, and penalties' histories.

    Args:
        samples: whether this rank samples.
    """
    backend = loaded.backend
    num_rows = min(config.max_num_seqs, limits.max_num_batched_tokens)
    sampling = SamplingParams(max_tokens=1, top_p=0.9, num_logprobs=1)

    def run(max_num_tokens: int, *, with_logits: bool) -> None:
        num_tokens = min(max_num_tokens, max_model_len)
        # All its blocks are the same one: what it computes means nothing, what it takes is what a real one takes.
        cache = _allocate(config, loaded, 1)
        cache.data.zero_()
        blocks = [0] * -(-num_tokens // config.block_size)
        span = SequenceSpan([0] * num_tokens, 0, 1.0, blocks, 1)
        spans = [span] * max(1, max_num_tokens // num_tokens)
        hidden: torch.Tensor = loaded.model(
            ForwardBatch.build(spans, loaded.config, config.block_size, backend.device), cache
        )
        if not with_logits:
            return
        logits = loaded.model.logits(hidden[:1].expand(num_rows, -1).contiguous())
        if samples:
            rows = [SamplingRow(i, sampling, [0], 1, 0) for i in range(num_rows)]
            loaded.make_sampler(1, 1).launch(logits, rows)

    num_bytes = backend.measure_step_bytes(lambda: run(limits.max_num_batched_tokens, with_logits=True))
    if num_bytes == 0:
        return 0
    # An id and a number for each token that a sequence with penalties may have.
    num_bytes += config.max_num_seqs * max_model_len * 12
    num_bytes += backend.step_table_bytes(loaded.config, config.max_num_seqs, max_model_len, config.block_size)
    if config.cuda_graphs:
        # Recorded steps keep their logits; what they compute in between they share, but with no other step.
        num_recorded = min(limits.max_num_batched_tokens, MAX_RECORDED_TOKENS)
        num_bytes += backend.measure_step_bytes(lambda: run(num_recorded, with_logits=False))
        num_sets = 1 if loaded.adapters is None else 2
        num_bytes += num_sets * _GRAPH_LOGITS * num_rows * loaded.config.vocab_size * 4 + _GRAPH_BYTES
    return num_bytes
