"""The whole server within the test's own process and loop, in front of an engine that repeats prompts.

It starts in a tenth of a second: for tests of how servers come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from model.contract.engine_config import EngineConfig
from model.contract.tokenizer import Tokenizer
from server.conversion.defaults import GenerationDefaults
from server.engine.client import EngineClient
from server.engine.supervisor import EngineState
from server.serve import draining_server
from server.services import Services
from server.settings import Settings

# Takes a completion of a few tokens; the engine answers with the prompt.
ECHO = {"prompt": "echo", "max_tokens": 4}


class LightServer:
    """One server, on a port of its own.

    Args:
        checkpoint: whose tokenizer is used.
        folder: for the engine's notes.
        port: to listen on; 0 lets the system choose.
        script: texts that the model says, one a request; None has the engine repeat prompts.
        engine: a mode of the bad engine instead, such as "mute".
        config: further settings.

    Attributes:
        noticed: ends the drain delay, whatever the clock says, where `wait_until_noticed` was asked for.
        engine: its client.
        url: where it listens.
    """

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        port: int = 0,
        script: Sequence[str] | None = None,
        engine: str = "mortal:0",
        **config: Any,
    ) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._script = folder / "script.json"
        if script is None:
            engine_config = EngineConfig(checkpoint_path=str(folder / "lives"), device=engine)
            self.engine = EngineClient(engine_config, module="tests.support.bad_engine")
        else:
            self._script.write_text(json.dumps(script))
            engine_config = EngineConfig(checkpoint_path=str(self._script))
            self.engine = EngineClient(engine_config, module="tests.support.scripted_engine")
        self._server = draining_server(
            Settings(model="m", served_model_name=("Qwen",), **config),
            Tokenizer.from_folder(checkpoint),
            GenerationDefaults.from_folder(checkpoint),
            self.engine,
        )
        self.noticed = asyncio.Event()
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # they are the test's
        self._task = asyncio.create_task(self._server.serve([self._listener]))

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while self.engine.state is not EngineState.READY or not self._server.started:
                await asyncio.sleep(0.01)

    def prompts(self) -> list[str]:
        """What the model of a script was given, without control tokens."""
        lines = self._script.with_suffix(".prompts").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def metric(self, name: str, **labels: str) -> float:
        """One of its metrics; 0 where it has not been counted yet."""
        app: Any = self._server.config.app
        return float(app.state.services.metrics.registry.get_sample_value(name, labels) or 0)

    @property
    def services(self) -> Services:
        """What its routes share."""
        app: Any = self._server.config.app
        services: Services = app.state.services
        return services

    def wait_until_noticed(self) -> None:
        async def wait(delay_s: float) -> None:
            await self.noticed.wait()

        self._server.wait_for_balancers = wait  # type: ignore[method-assign]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._server.handle_exit(number, None)

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            await self._task


@contextlib.asynccontextmanager
async def light_server(checkpoint: Path, folder: Path, **config: Any) -> AsyncIterator[LightServer]:
    """A server that is ready; it has ended afterwards."""
    server = LightServer(checkpoint, folder, **config)
    try:
        await server.ready()
        yield server
    finally:
        server.signal(signal.SIGINT)
        await server.ended()
