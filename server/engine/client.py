"""The HTTP side of the pipe: gives every request its own stream of outputs.

Whatever happens to the engine, every open request ends: with its last output, or with an error. Knows token
ids, never text or HTTP.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from model.contract.engine_config import EngineConfig
from model.contract.errors import EngineUnavailableError
from model.contract.messages import AddRequest, EngineReady, EngineStats, StepOutputs
from model.contract.sampling_params import SamplingParams
from server.engine.adapters import EngineAdapters, ServedAdapter
from server.engine.handle import RequestHandle
from server.engine.open_requests import OpenRequests
from server.engine.process import ENGINE_MODULE, EngineProcess
from server.engine.supervisor import EngineState, EngineSupervisor
from server.gates.callers import NOBODY, Caller, WaitingLine

logger = logging.getLogger(__name__)

# In front of the name by which the engine knows a caller in the background.
_BACKGROUND = "background:"

_UNAVAILABLE = {
    EngineState.LOADING: "The model is still loading; try again in a moment.",
    EngineState.RECOVERING: "The engine is being restarted; try again in a moment.",
    EngineState.DRAINING: "The server is shutting down and takes no new requests.",
    EngineState.DEAD: "The engine has stopped and cannot be restarted; see the server's log.",
}


class Prompt(NamedTuple):
    """Token ids to continue, and how; and how the client expects them to go on, perhaps nothing."""

    ids: list[int]
    sampling: SamplingParams
    prediction_ids: tuple[int, ...] = ()


class EngineClient:
    """Requests to the engine, and what comes back.

    Args:
        start_timeout_s: the longest silence while it loads.
        timeout_s: the longest silence after that; None chooses by the device.
        on_fatal: called with a one-line reason when the engine cannot be brought (back) to life.
        module: the engine's entry point (another one in tests).
        first_process: an engine that was started already.
        adapters: adapters that are served from the start.

    Attributes:
        adapters: adapters that are served now.
        stats: state of the engine's loop after the last step.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        start_timeout_s: float = 600.0,
        timeout_s: float | None = None,
        on_fatal: Callable[[str], None] | None = None,
        module: str = ENGINE_MODULE,
        first_process: EngineProcess | None = None,
        adapters: Iterable[ServedAdapter] = (),
    ) -> None:
        self.adapters = EngineAdapters(lambda message: self._supervisor.send(message), adapters)
        self._supervisor = EngineSupervisor(
            self._config_of_a_start,
            on_adapter=self.adapters.on_loaded,
            on_step=self._on_step,
            on_ready=self._on_ready,
            on_lost=self._on_lost,
            on_fatal=self._on_fatal,
            start_timeout_s=start_timeout_s,
            timeout_s=timeout_s,
            module=module,
            first_process=first_process,
        )
        self._config = config
        self._tell_fatal = on_fatal
        self._is_leaving = self._is_closed = False
        self._seq_ids = itertools.count(1)
        self._requests = OpenRequests(lambda message: self._supervisor.send(message), self.adapters)
        self._stops_at_once = False
        self._step_listeners: list[Callable[[EngineStats], None]] = []
        self._first_ready_listeners: list[Callable[[], None]] = []
        self.stats = EngineStats()

    def _config_of_a_start(self) -> EngineConfig:
        """Returns what an engine that starts is told; an adapter that was served before must not end the server."""
        return msgspec.structs.replace(
            self._config, adapters=self.adapters.to_load(), adapters_may_fail=self.ready is not None
        )

    async def start(self) -> None:
        """Spawns the engine and returns at once; `state` tells when it serves."""
        self._supervisor.start()

    async def stop(self) -> None:
        """Ends the engine; open requests end with an error."""
        self.drain()
        self._requests.fail_all("The server has shut down.")
        await self._supervisor.stop(now=self._stops_at_once)

    def leave(self) -> None:
        """Says DRAINING from now on and serves as before, until whoever sends requests has noticed."""
        self._is_leaving = True

    def drain(self) -> None:
        """Lets no new requests in from now on; those that are in go on."""
        self._is_leaving = self._is_closed = True

    def stop_at_once(self) -> None:
        """Lets `stop` not wait for the engine's step to end."""
        self._stops_at_once = True

    @property
    def state(self) -> EngineState:
        """What can be done for a request now."""
        state = self._supervisor.state
        return EngineState.DRAINING if self._is_leaving and state is not EngineState.DEAD else state

    @property
    def ready(self) -> EngineReady | None:
        """What the engine said when it last became ready; None before the first time."""
        return self._supervisor.ready

    @property
    def waiting(self) -> WaitingLine:
        """Requests and prompts of which the engine has not said anything yet; not those in the background."""
        return self._requests.waiting

    def adapters_in_use(self) -> tuple[list[str], list[str]]:
        """Returns the names of the adapters with a request that has a token, and of those whose requests all wait."""
        running, waiting = self._requests.adapters_in_use()
        return self.adapters.names_of(running), self.adapters.names_of(waiting)

    @property
    def cache_config(self) -> dict[str, str]:
        """The KV cache under vLLM's names; empty before an engine was ready."""
        ready, config = self.ready, self._config
        if ready is None:
            return {}
        return {
            "block_size": str(ready.block_size),
            "cache_dtype": config.kv_cache_dtype,
            "enable_prefix_caching": str(config.enable_prefix_caching),
            "gpu_memory_utilization": str(config.gpu_memory_utilization),
            "num_gpu_blocks": str(ready.num_blocks),
        }

    @property
    def num_restarts(self) -> int:
        """How often the engine was started again."""
        return self._supervisor.num_restarts

    @property
    def num_open_requests(self) -> int:
        """HTTP requests with at least one unfinished sequence."""
        return len(self._requests)

    def on_step(self, listener: Callable[[EngineStats], None]) -> None:
        """Registers a listener for the state after each step."""
        self._step_listeners.append(listener)

    def on_start(self, listener: Callable[[int], None]) -> None:
        """Registers a listener for requests that have their first token; it is told their prompts' tokens."""
        self._requests.start_listeners.append(listener)

    def on_first_ready(self, listener: Callable[[], None]) -> None:
        """Registers a listener for when requests are served for the first time."""
        self._first_ready_listeners.append(listener)

    def require_ready(self) -> EngineReady:
        """Returns what the engine can do.

        Raises:
            EngineUnavailableError: it would not serve a request now, not even one that is in already.
        """
        ready = self.ready
        if self._supervisor.state is EngineState.READY and ready is not None:
            return ready
        raise self.unavailable()

    def require_open(self) -> None:
        """Returns if a new request may come in.

        Raises:
            EngineUnavailableError: the server drains, or the engine would not serve it.
        """
        if self._is_closed:
            raise self.unavailable()
        self.require_ready()

    def unavailable(self) -> EngineUnavailableError:
        """Returns what to tell whoever cannot be served, by the state."""
        return EngineUnavailableError(_UNAVAILABLE[self.state])

    def submit(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        request_id: str,
        priority: int = 0,
        caller: Caller = NOBODY,
        cache_salt: str = "",
        adapter_id: int = 0,
        is_background: bool = False,
    ) -> RequestHandle:
        """Hands a request to the engine.

        Args:
            prompts: each is computed once and continued `n` times; choice `p * n + i` continues prompt p.
            priority: the lowest is served first among the caller's.
            cache_salt: cached prompt starts are shared only where it is equal.
            adapter_id: 0 for none.
            is_background: take only what the others leave.

        Returns:
            The stream of outputs. Whoever takes it must end it: read it to its end, or `abort`.

        Raises:
            EngineUnavailableError: the engine is gone for good.
        """
        # While the request was converted the engine may have died; like those that wait, it goes to the next one.
        is_back_soon = self._supervisor.state is EngineState.RECOVERING
        if not is_back_soon:
            self.require_ready()
        messages = [
            AddRequest(
                seq_ids=tuple(itertools.islice(self._seq_ids, n)),
                request_id=request_id,
                prompt_ids=prompt.ids,
                sampling=prompt.sampling,
                prediction_ids=list(prompt.prediction_ids),
                priority=priority,
                caller=f"{_BACKGROUND}{caller.name}" if is_background else caller.name,
                weight=caller.weight,
                num_before=number * n,
                cache_salt=cache_salt,
                adapter_id=adapter_id,
                is_background=is_background,
            )
            for number, prompt in enumerate(prompts)
        ]
        handle = self._requests.open(messages, caller)
        if not is_back_soon:
            for message in messages:
                self._supervisor.send(message)
        return handle

    def fail_open_requests(self, message: str) -> None:
        """Ends every open request with an error, and its sequences in the engine."""
        self._requests.abort_all(message)

    def _on_step(self, step: StepOutputs) -> None:
        self.stats = step.stats
        for output in step.outputs:
            self._requests.deliver(output)
        for listener in self._step_listeners:
            listener(step.stats)

    def _on_ready(self) -> None:
        """Sends again what the engine before this one took along unheard."""
        if self.ready is not None:
            self.adapters.on_ready(self.ready.adapters)
        waiting = list(self._requests.take_waiting())
        if waiting:
            logger.info("sending %d prompts to the new engine", len(waiting))
        for message in waiting:
            self._supervisor.send(message)
        self.adapters.after_ready()
        while self._first_ready_listeners:
            self._first_ready_listeners.pop()()

    def _on_lost(self) -> None:
        self.stats = EngineStats()
        self.adapters.on_lost()
        self._requests.fail_lost()

    def _on_fatal(self, reason: str) -> None:
        self._requests.fail_all(_UNAVAILABLE[EngineState.DEAD])
        if self._tell_fatal is not None:
            self._tell_fatal(reason)
