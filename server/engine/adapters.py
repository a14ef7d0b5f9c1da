"""The LoRA adapters of an engine, as the HTTP process knows them: which name is which, who uses them, what comes back.

The engine knows numbers. One that is given out is never used again, so a name that is loaded anew can take nothing
from what an engine has cached of the old one. Every engine that is started gets all adapters that are still wanted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from model.contract.engine_config import LoadAdapter
from model.contract.errors import AdapterError, EngineUnavailableError
from model.contract.messages import AdapterLoaded, ToEngine, UnloadAdapter

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ServedAdapter:
    """An adapter under the name by which requests choose it.

    Attributes:
        source: the folder or hub id as it was given.
        folder: the folder that the source stands for.
        adapter_id: its number in the engine.
        created: Unix time.
        num_bytes: bytes that it takes on the device; 0 before an engine has said.
    """

    name: str
    source: str
    folder: Path
    adapter_id: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    num_bytes: int = 0


class EngineAdapters:
    """Names and numbers of adapters.

    Args:
        send: sends a message to the engine that runs now.
        adapters: adapters that are served from the start.
    """

    def __init__(self, send: Callable[[ToEngine], None], adapters: Iterable[ServedAdapter] = ()) -> None:
        self._send = send
        self._by_name: dict[str, ServedAdapter] = {}
        self._by_id: dict[int, ServedAdapter] = {}
        self._num_users: Counter[int] = Counter()
        self._loading: dict[int, asyncio.Future[AdapterLoaded]] = {}
        self._last_id = 0
        for adapter in adapters:
            self._number(adapter)
            self._by_name[adapter.name] = adapter

    def _number(self, adapter: ServedAdapter) -> None:
        self._last_id += 1
        adapter.adapter_id = self._last_id
        self._by_id[adapter.adapter_id] = adapter

    def __iter__(self) -> Iterator[ServedAdapter]:
        return iter(list(self._by_name.values()))

    def names_of(self, adapter_ids: Iterable[int]) -> list[str]:
        """Returns the names of adapters, sorted; also of those that only wait for their requests to end."""
        return sorted({self._by_id[number].name for number in adapter_ids if number in self._by_id})

    def find(self, name: str) -> ServedAdapter | None:
        """Returns the adapter of a name, if there is one."""
        return self._by_name.get(name)

    def to_load(self) -> tuple[LoadAdapter, ...]:
        """What an engine that starts must load: all that have a name, then those that requests still wait for.

        In this order, as there may be no room for the last ones: they were on their way out.
        """
        named = list(self._by_name.values())
        waited_for = [a for a in self._by_id.values() if self._num_users[a.adapter_id] and a not in named]
        return tuple(LoadAdapter(adapter.adapter_id, str(adapter.folder)) for adapter in [*named, *waited_for])

    async def load(self, adapter: ServedAdapter, *, replace: bool = False) -> None:
        """Loads an adapter beside what runs and gives it its name.

        Args:
            adapter: not numbered yet.
            replace: let the name go over to it from another; that one's requests finish.

        Raises:
            AdapterError: the name is taken, or the engine cannot serve the adapter.
            EngineUnavailableError: the engine ended meanwhile.
        """
        if any(self._by_id[number].name == adapter.name for number in self._loading):
            raise AdapterError(f"An adapter of the name '{adapter.name}' is being loaded.")
        replaced = self._by_name.get(adapter.name)
        if replaced is not None and not replace:
            raise AdapterError(
                f"The lora adapter '{adapter.name}' has already been loaded. If you want to load the adapter in place,"
                " set 'load_inplace' to True."
            )
        self._number(adapter)
        future = self._loading[adapter.adapter_id] = asyncio.get_running_loop().create_future()
        replaces = 0 if replaced is None else replaced.adapter_id
        self._send(LoadAdapter(adapter.adapter_id, str(adapter.folder), replaces))
        try:
            loaded = await asyncio.shield(future)
        except EngineUnavailableError:
            self._by_id.pop(adapter.adapter_id, None)
            raise
        if loaded.error is not None:
            raise AdapterError(loaded.error)
        logger.info("adapter %s loaded: rank %d, %.1f MB", adapter.name, loaded.rank, loaded.num_bytes / 1e6)

    def unload(self, name: str) -> bool:
        """Takes a name away; requests that have the adapter already finish. Returns whether there was such a name."""
        adapter = self._by_name.pop(name, None)
        if adapter is None:
            return False
        self._send(UnloadAdapter(adapter.adapter_id))
        self._drop_if_unused(adapter.adapter_id)
        logger.info("adapter %s unloaded", name)
        return True

    def add_user(self, adapter_id: int) -> None:
        """Takes note of a request that runs with an adapter."""
        self._num_users[adapter_id] += 1

    def remove_user(self, adapter_id: int) -> None:
        """Takes note that such a request has ended."""
        self._num_users[adapter_id] -= 1
        self._drop_if_unused(adapter_id)

    def _drop_if_unused(self, adapter_id: int) -> None:
        adapter = self._by_id.get(adapter_id)
        if self._num_users[adapter_id] <= 0:
            del self._num_users[adapter_id]
            if adapter is not None and self._by_name.get(adapter.name) is not adapter:
                del self._by_id[adapter_id]

    def on_loaded(self, loaded: AdapterLoaded) -> None:
        """Takes what came of a load while the engine ran."""
        future = self._loading.pop(loaded.adapter_id, None)
        adapter = self._by_id.get(loaded.adapter_id)
        if future is None or adapter is None:
            return
        if loaded.error is None:
            adapter.num_bytes = loaded.num_bytes
            self.unload(adapter.name)
            self._by_name[adapter.name] = adapter
        else:
            del self._by_id[loaded.adapter_id]
        future.set_result(loaded)

    def on_ready(self, results: Iterable[AdapterLoaded]) -> None:
        """Takes what an engine that has started says of those it was to load; one that failed loses its name."""
        for result in results:
            adapter = self._by_id.get(result.adapter_id)
            if adapter is None:  # unloaded while the engine started
                self._send(UnloadAdapter(result.adapter_id))
                continue
            if result.error is None:
                adapter.num_bytes = result.num_bytes
                continue
            logger.error("adapter %s is not served any more: %s", adapter.name, result.error)
            if self._by_name.get(adapter.name) is adapter:
                del self._by_name[adapter.name]
            self._drop_if_unused(adapter.adapter_id)

    def after_ready(self) -> None:
        """Lets go of what an engine was given for requests that waited; called when they have been sent to it."""
        for adapter in self._by_id.values():
            if self._by_name.get(adapter.name) is not adapter:
                self._send(UnloadAdapter(adapter.adapter_id))

    def on_lost(self) -> None:
        """Ends the loads that an engine took along."""
        loading, self._loading = self._loading, {}
        for future in loading.values():
            future.set_exception(EngineUnavailableError("The engine stopped while the adapter was loaded; try again."))
            future.exception()  # whoever waited may be gone
