"""From settings to what a server is made of: checkpoint, tokenizer, adapters, and an engine that is not started yet.

`serve` and the replicas of a cluster start with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from model.contract.errors import CheckpointError, ConfigError
from model.contract.files.adapter_config import AdapterConfig
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import MemoryPlan, plan_memory
from model.contract.tokenizer import Tokenizer
from server.conversion.defaults import GenerationDefaults
from server.engine.adapters import ServedAdapter
from server.engine.client import EngineClient
from server.engine.process import EngineProcess
from server.hubs.resolve import resolve_adapter, resolve_checkpoint
from server.settings import Settings

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a server is made of, beside its settings."""

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    engine: EngineClient


def load(settings: Settings, *, on_fatal: Callable[[str], None], engine_process: EngineProcess | None = None) -> Loaded:
    """Finds checkpoint and adapters, fetching them if need be, and reads all but their weights.

    Args:
        on_fatal: as for `EngineClient`.
        engine_process: an engine's process that was started already.

    Raises:
        StartupError: one of them cannot be used; the message is one line.
    """
    checkpoint = resolve_checkpoint(settings.model, settings.hub, settings.revision)
    tokenizer = inspect_checkpoint(checkpoint, settings)
    defaults = GenerationDefaults.from_folder(checkpoint)
    for ids in defaults.stop_sequences:
        if any(map(tokenizer.is_special, ids)):
            logger.warning("%s: stop_words_ids %s holds a control token and is not used", checkpoint, list(ids))
    adapters = find_adapters(settings)
    engine = EngineClient(
        settings.engine_config(checkpoint),
        start_timeout_s=settings.engine_start_timeout_s,
        timeout_s=settings.engine_timeout_s,
        on_fatal=on_fatal,
        first_process=engine_process,
        adapters=adapters,
    )
    return Loaded(tokenizer, defaults, engine)


def find_adapters(settings: Settings) -> list[ServedAdapter]:
    """Finds the adapters of `--lora`.

    Raises:
        StartupError: a folder is not there, is not an adapter, or has the name of the model.
    """
    if settings.allow_lora_updates and settings.lora_root is None:
        logger.warning("--allow-lora-updates without --lora-root: requests may load adapters from any folder here")
    found = []
    for name, source in settings.adapters.items():
        if name in settings.served_names:
            raise ConfigError(f"--lora {name}: the model itself is served under this name")
        folder = resolve_adapter(source, settings.hub)
        AdapterConfig.from_folder(folder)  # errors are told before the model is loaded
        found.append(ServedAdapter(name, source, folder))
    return found


def inspect_checkpoint(checkpoint: Path, settings: Settings) -> Tokenizer:
    """Reads config and vocabulary; logs what is odd in them, and the summary of `qwen-server memory` in one line.

    The engine logs the number of KV cache blocks when it is ready.

    Raises:
        CheckpointError: one of them cannot be used; a vocabulary with more tokens than the embedding has rows would
            only fail in the middle of a reply.
        ConfigError: the model cannot be split over the devices that were asked for.
    """
    config = read_model_config(checkpoint).with_windows(settings.attention_window)
    for remark in config.remarks:
        logger.warning("%s: %s", checkpoint, remark)
    plan = plan_memory(
        config,
        dtype=settings.dtype,
        kv_cache_dtype=settings.kv_cache_dtype,
        block_size=settings.block_size,
        at_load=settings.quantization,
        lm_head_dtype=settings.lm_head_dtype,
        num_ranks=settings.tensor_parallel_size,
        num_stages=settings.pipeline_parallel_size,
    )
    each = " of the largest rank" if plan.num_stages > 1 else " of each rank" if plan.num_ranks > 1 else ""
    logger.info("memory%s: %s%s", each, plan.summary(), _adapters_summary(plan, settings))
    tokenizer = Tokenizer.from_folder(checkpoint)
    if tokenizer.num_rows_needed > config.vocab_size:
        raise CheckpointError(
            f"{checkpoint}: its vocabulary has ids up to {tokenizer.num_rows_needed - 1}, but its embedding only"
            f" {config.vocab_size} rows (vocab_size in config.json); is the vocabulary another checkpoint's?"
        )
    return tokenizer


def _adapters_summary(plan: MemoryPlan, settings: Settings) -> str:
    if not settings.max_adapters:
        return ""
    megabytes = plan.adapter_bytes(settings.max_lora_rank) / 1e6
    return f"; up to {settings.max_adapters} LoRA adapters, {megabytes:.1f} MB each at rank {settings.max_lora_rank}"
