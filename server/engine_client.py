"""The HTTP side of the pipe: gives every request its own stream of outputs.

Whatever happens to the engine, every open request ends: with its last output, or with an error. Knows token
ids, never text or HTTP.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from model.engine_config import EngineConfig
from model.errors import EngineUnavailableError
from model.messages import Abort, AddRequest, EngineReady, EngineStats, SequenceOutput, StepOutputs
from model.sampling_params import SamplingParams
from server.engine_supervisor import EngineState, EngineSupervisor
from server.request_handle import RequestHandle

_UNAVAILABLE = {
    EngineState.LOADING: "The model is still loading; try again in a moment.",
    EngineState.RECOVERING: "The engine is being restarted; try again in a moment.",
    EngineState.DRAINING: "The server is shutting down and takes no new requests.",
    EngineState.DEAD: "The engine has stopped and cannot be restarted; see the server's log.",
}


class Prompt(NamedTuple):
    """Token ids to continue, and how."""

    ids: list[int]
    sampling: SamplingParams


class EngineClient:
    """Requests to the engine, and what comes back.

    Args:
        config: of the engine.
        start_timeout_s: the longest silence while it loads.
        on_fatal: told the one-line reason when the engine cannot be brought (back) to life.
        module: the engine's entry point (another one in tests).

    Attributes:
        stats: state of its loop after the last step.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        start_timeout_s: float = 600.0,
        on_fatal: Callable[[str], None] | None = None,
        module: str = "model.engine_process",
    ) -> None:
        self._supervisor = EngineSupervisor(
            config,
            on_step=self._on_step,
            on_death=self._on_death,
            on_fatal=on_fatal,
            start_timeout_s=start_timeout_s,
            module=module,
        )
        self._draining = False
        self._seq_ids = itertools.count(1)
        self._handles: dict[int, RequestHandle] = {}
        self._open_requests: set[RequestHandle] = set()
        self._step_listeners: list[Callable[[EngineStats], None]] = []
        self.stats = EngineStats()

    async def start(self) -> None:
        """Spawns the engine and returns at once; `state` tells when it serves."""
        self._supervisor.start()

    async def stop(self) -> None:
        """Ends the engine; open requests end with an error."""
        self._draining = True
        self._fail_all("The server has shut down.")
        await self._supervisor.stop()

    def drain(self) -> None:
        """Takes no new requests from now on; those that run go on."""
        self._draining = True

    @property
    def state(self) -> EngineState:
        """What can be done for a request now."""
        state = self._supervisor.state
        return EngineState.DRAINING if self._draining and state is not EngineState.DEAD else state

    @property
    def ready(self) -> EngineReady | None:
        """What the engine said when it last became ready; None before the first time."""
        return self._supervisor.ready

    @property
    def num_restarts(self) -> int:
        """How often the engine was started again."""
        return self._supervisor.num_restarts

    @property
    def num_open_requests(self) -> int:
        """HTTP requests with at least one unfinished sequence."""
        return len(self._open_requests)

    @property
    def num_unstarted_requests(self) -> int:
        """HTTP requests of which the engine has not yet said anything."""
        return sum(not handle.has_output for handle in self._open_requests)

    def on_step(self, listener: Callable[[EngineStats], None]) -> None:
        """Registers a listener for the state after each step."""
        self._step_listeners.append(listener)

    def require_ready(self) -> EngineReady:
        """Returns what the engine can do.

        Raises:
            EngineUnavailableError: it would not serve a request now.
        """
        ready = self.ready
        if self.state is EngineState.READY and ready is not None:
            return ready
        raise EngineUnavailableError(_UNAVAILABLE[self.state])

    def submit(self, prompts: Sequence[Prompt], *, n: int = 1, request_id: str, priority: int = 0) -> RequestHandle:
        """Hands a request to the engine.

        Args:
            prompts: each is computed once and continued `n` times; choice `p * n + i` continues prompt p.
            n: continuations of each prompt.
            request_id: for log lines.
            priority: lower is served first.

        Returns:
            The stream of outputs. Whoever takes it must end it: read it to its end, or `abort`.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
        """
        self.require_ready()
        seq_ids = [next(self._seq_ids) for _ in range(len(prompts) * n)]
        handle = RequestHandle(request_id, seq_ids, self._abort)
        self._open_requests.add(handle)
        for seq_id in seq_ids:
            self._handles[seq_id] = handle
        for number, prompt in enumerate(prompts):
            self._supervisor.send(
                AddRequest(
                    seq_ids=tuple(seq_ids[number * n : (number + 1) * n]),
                    request_id=request_id,
                    prompt_ids=prompt.ids,
                    sampling=prompt.sampling,
                    priority=priority,
                )
            )
        return handle

    def fail_open_requests(self, message: str) -> None:
        """Ends every open request with an error, and its sequences in the engine."""
        if self._handles:
            self._supervisor.send(Abort(tuple(self._handles)))
        self._fail_all(message)

    def _abort(self, handle: RequestHandle, seq_ids: tuple[int, ...]) -> None:
        for seq_id in seq_ids:
            self._handles.pop(seq_id, None)
        if not handle.open_seq_ids:
            self._open_requests.discard(handle)
        self._supervisor.send(Abort(seq_ids))

    def _on_step(self, step: StepOutputs) -> None:
        self.stats = step.stats
        for output in step.outputs:
            self._deliver(output)
        for listener in self._step_listeners:
            listener(step.stats)

    def _deliver(self, output: SequenceOutput) -> None:
        handle = self._handles.get(output.seq_id)
        if handle is None:
            return  # aborted while this was on its way
        if output.finish_reason is not None:
            del self._handles[output.seq_id]
        handle.deliver(output)
        if not handle.open_seq_ids:
            self._open_requests.discard(handle)

    def _on_death(self) -> None:
        self.stats = EngineStats()
        self._fail_all("The engine stopped while the request ran; please send it again.")

    def _fail_all(self, message: str) -> None:
        self._handles = {}
        handles, self._open_requests = self._open_requests, set()
        for handle in handles:
            handle.fail(EngineUnavailableError(message))
