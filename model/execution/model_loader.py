"""Builds one rank's part of a checkpoint on its device: what comes before any memory is given to the KV cache."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from model.adapters.loading import load_first, make_store
from model.adapters.store import AdapterStore
from model.architectures import make_model
from model.architectures.causal_lm import CausalLM
from model.backends import make_backend
from model.backends.base import Backend
from model.backends.devices import device_of_rank, num_threads_of_rank
from model.backends.torch_backend import require_known_cache_dtype
from model.contract.config import ModelConfig
from model.contract.engine_config import EngineConfig
from model.contract.errors import ConfigError
from model.contract.files.model_config import read_model_config
from model.contract.memory_plan import plan_memory
from model.contract.messages import AdapterLoaded
from model.contract.parallel import Placement, require_divisible, share_of_config
from model.distributed.ranks import Ranks
from model.execution.checkpoint import ProgressCallback, load_weights
from model.execution.tensor_files import stored_rows
from model.quantization import linear_maker
from model.quantization.at_load import quantize_at_load
from model.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LoadedModel:
    """One rank's part of a model.

    Attributes:
        config: numbers of the whole model.
        own_config: numbers of this rank's part: its heads, columns and layers.
        dtype: dtype of activations.
        cache_dtype: dtype of cached keys and values.
        weights_bytes: bytes of the parameters on all ranks together.
        adapters: None where the engine serves none.
        adapters_loaded: the outcome of each adapter that was to be loaded first.
    """

    config: ModelConfig
    own_config: ModelConfig
    backend: Backend
    model: CausalLM
    dtype: torch.dtype
    cache_dtype: torch.dtype
    weights_bytes: int
    adapters: AdapterStore | None
    adapters_loaded: tuple[AdapterLoaded, ...]

    def make_sampler(self, max_num_seqs: int, max_model_len: int) -> Sampler:
        """Returns a sampler of this model's logits."""
        backend = self.backend
        return Sampler(self.config.vocab_size, backend.device, max_num_seqs, max_model_len, backend.sample_tokens)


def load_model(config: EngineConfig, ranks: Ranks, on_progress: ProgressCallback | None = None) -> LoadedModel:
    """Loads a rank's part of a checkpoint; all ranks call it together.

    Args:
        on_progress: called with (bytes read, bytes in all) while loading.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: the device or dtype that is asked for cannot be had, or the model cannot be split so.
    """
    folder, place = Path(config.checkpoint_path), ranks.place
    model_config = read_model_config(folder, stored_rows).with_windows(config.attention_window)
    require_divisible(model_config, place.size, place.num_stages)
    device = device_of_rank(config.device, place.number, place.num_processes)
    backend: Backend = make_backend(device, config.kernels, batch_invariant=config.batch_invariant)
    dtype = _activation_dtype(config, model_config, backend)
    cache_dtype = _cache_dtype(config, model_config, dtype)
    layers = _layers_of_stage(config, model_config, dtype, place)
    own_config = share_of_config(model_config, place.size, layers)
    make_linear = linear_maker(model_config, backend, dtype, config.quantization)
    model = make_model(model_config, make_linear, backend, dtype, ranks, layers)
    if config.lm_head_dtype == "int8":
        model.quantize_head(functools.partial(quantize_at_load, mode="int8"))
    own_bytes = load_weights(model, folder, backend.device, on_progress)
    weights_bytes = sum(ranks.numbers(own_bytes))
    backend.set_num_threads(num_threads_of_rank(backend.device, config.num_threads, place.num_processes), own_bytes)
    backend.finish_loading(own_config, dtype, cache_dtype, config.block_size)
    adapters = make_store(model, model_config, backend, dtype, config)
    adapters_loaded = load_first(adapters, config)
    _require_same_adapters(adapters_loaded, ranks)
    return LoadedModel(
        model_config, own_config, backend, model, dtype, cache_dtype, weights_bytes, adapters, adapters_loaded
    )


def _activation_dtype(config: EngineConfig, model_config: ModelConfig, backend: Backend) -> torch.dtype:
    declared = model_config.declared_dtype
    dtype = backend.resolve_dtype(config.dtype, declared)
    if config.batch_invariant and backend.device.type == "cpu" and dtype == torch.float16:
        raise ConfigError("--batch-invariant: a CPU multiplies float16 as torch does; use bfloat16 or float32")
    used = str(dtype).removeprefix("torch.")
    if config.dtype == "auto" and declared not in (None, used):
        logger.warning("the checkpoint is %s; on this device it runs in %s (--dtype)", declared, used)
    return dtype


def _cache_dtype(config: EngineConfig, model_config: ModelConfig, dtype: torch.dtype) -> torch.dtype:
    if config.kv_cache_dtype == "auto" and not model_config.int8_kv_cache:
        return dtype
    return require_known_cache_dtype("int8" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype)


def _layers_of_stage(
    config: EngineConfig, model_config: ModelConfig, dtype: torch.dtype, place: Placement
) -> range:
    plan = plan_memory(
        model_config,
        dtype=str(dtype).removeprefix("torch."),
        at_load=config.quantization,
        lm_head_dtype=config.lm_head_dtype,
        num_ranks=place.size,
        num_stages=place.num_stages,
    )
    return plan.layers_of_stages[place.stage]


def _require_same_adapters(loaded: tuple[AdapterLoaded, ...], ranks: Ranks) -> None:
    """Ends the start where ranks differ: slots are given out in turn, so after a missing one they would disagree."""
    bits = sum(1 << i for i, adapter in enumerate(loaded[:62]) if adapter.error is None)
    if len(set(ranks.numbers(bits))) > 1:
        raise RuntimeError("an adapter could be loaded on some ranks only")
