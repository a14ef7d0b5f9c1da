"""Loads adapters: those of the start one after another, later ones in a thread beside the loop."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from model.adapters.store import AdapterStore, PreparedAdapter
from model.backends.base import Backend
from model.contract.config import ModelConfig
from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.errors import AdapterError
from model.contract.messages import AdapterLoaded

logger = logging.getLogger(__name__)


def make_store(
    model: nn.Module, model_config: ModelConfig, backend: Backend, dtype: torch.dtype, config: EngineConfig
) -> AdapterStore | None:
    """Makes room for adapters in a loaded model; None, and the model as it is, where there may be none."""
    if config.max_adapters == 0:
        return None
    is_alone = config.tensor_parallel_size * config.pipeline_parallel_size == 1  # ranks load none while they run
    return AdapterStore(
        model,
        model_config,
        backend,
        dtype,
        max_adapters=config.max_adapters,
        max_rank=config.max_adapter_rank,
        has_spare_slot=config.allow_lora_updates and is_alone,
    )


def load_first(store: AdapterStore | None, config: EngineConfig) -> tuple[AdapterLoaded, ...]:
    """Loads the adapters that are to be there from the start.

    Raises:
        AdapterError: one cannot be served, and none may be missing.
    """
    loaded = []
    for adapter in config.adapters if store is not None else ():
        assert store is not None
        try:
            loaded.append(_install(store, adapter, store.prepare(Path(adapter.path))))
        except AdapterError as error:
            if not config.adapters_may_fail:
                raise
            logger.error("an adapter cannot be loaded again: %s", error)
            loaded.append(AdapterLoaded(adapter.adapter_id, error=str(error)))
    return tuple(loaded)


def _install(store: AdapterStore, adapter: LoadAdapter, prepared: PreparedAdapter) -> AdapterLoaded:
    store.install(adapter.adapter_id, prepared, adapter.replaces)
    return AdapterLoaded(adapter.adapter_id, prepared.num_bytes, prepared.rank)


class AdapterLoader:
    """Loads adapters while steps run; what it has prepared is installed between two of them.

    Args:
        store: None refuses every load.
        num_ranks: processes of the model; the ones that are led know only the adapters of the start.
    """

    def __init__(self, store: AdapterStore | None, num_ranks: int = 1) -> None:
        self._store = store
        self._num_ranks = num_ranks
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._loads: list[tuple[LoadAdapter, Future[PreparedAdapter]]] = []
        self._refused: list[AdapterLoaded] = []

    @property
    def is_loading(self) -> bool:
        """Whether something is to be reported, now or later."""
        return bool(self._loads or self._refused)

    @property
    def has_news(self) -> bool:
        """Whether something is to be reported now."""
        return bool(self._refused) or any(map(self._is_ready, self._loads))

    def _is_ready(self, load: tuple[LoadAdapter, Future[PreparedAdapter]]) -> bool:
        """Whether a load has failed, or can be installed without waiting for a slot."""
        adapter, future = load
        if not future.done():
            return False
        assert self._store is not None
        return future.exception() is not None or not self._store.must_wait(adapter.replaces)

    def load(self, adapter: LoadAdapter) -> None:
        """Begins to load an adapter."""
        if self._store is None:
            self._refused.append(AdapterLoaded(adapter.adapter_id, error="the engine was started without adapters"))
        elif self._num_ranks > 1:
            message = "on several ranks adapters are loaded at the start only: name it with --lora"
            self._refused.append(AdapterLoaded(adapter.adapter_id, error=message))
        else:
            self._loads.append((adapter, self._pool.submit(self._store.prepare, Path(adapter.path))))

    def take_over(self) -> list[AdapterLoaded]:
        """Makes the layers know what is ready, and reports it."""
        news, self._refused = self._refused, []
        for load in filter(self._is_ready, list(self._loads)):
            self._loads.remove(load)
            adapter, future = load
            try:
                assert self._store is not None
                news.append(_install(self._store, adapter, future.result()))
            except AdapterError as error:
                news.append(AdapterLoaded(adapter.adapter_id, error=str(error)))
            except Exception as error:
                logger.error("an adapter failed to load", exc_info=error)
                message = f"the engine failed on it ({type(error).__name__})"
                news.append(AdapterLoaded(adapter.adapter_id, error=message))
        return news
