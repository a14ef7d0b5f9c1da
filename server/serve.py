"""`qwen-server serve`: from settings to a listening server, and its orderly end.

A first SIGTERM drains: /ready says 503 while new requests are still served, until load balancers have noticed; then new
ones are refused, and running ones finish. Ctrl-C refuses new ones at once: whoever presses it has no balancer in front.
A second signal ends the process now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from functools import partial
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus

from model.contract.errors import StartupError
from model.contract.tokenizer import Tokenizer
from server.app import create_app
from server.conversion.defaults import GenerationDefaults
from server.engine.client import EngineClient
from server.engine.process import EngineProcess
from server.engine.supervisor import EngineState
from server.gates.admission import Admission
from server.gates.credentials import Credentials
from server.gates.http_protocol import HttpProtocol
from server.hubs.demo import ABOUT, demo_name
from server.hubs.resolve import local_folder
from server.listening import address_to_open, addresses_of, open_listeners
from server.settings import Settings
from server.startup import load
from server.telemetry.logs import configure_logging
from server.telemetry.tracing import require_tracing
from server.tls import Tls
from server.version import server_version

logger = logging.getLogger(__name__)

_KEEP_ALIVE_S = 75  # longer than the pools of usual clients and proxies keep idle connections
_LAST_WORDS_S = 2  # for streams that were ended to send their error
_POLL_S = 0.05


class DrainingServer(uvicorn.Server):
    """uvicorn, but a signal first sends callers elsewhere and lets running requests finish.

    Args:
        admission: counts the requests to wait for.
        drain_delay_s: after SIGTERM, how long /ready says 503 while new requests are still served.
        shutdown_timeout_s: after that, the longest wait for running requests.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        engine: EngineClient,
        admission: Admission,
        *,
        drain_delay_s: float,
        shutdown_timeout_s: float,
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._admission = admission
        self._drain_delay_s = drain_delay_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves on the sockets; keeps the loop for the signal handler that uvicorn installs."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal: the first drains, further ones end what runs and the engine.

        uvicorn's `force_exit` is never set: the application's lifespan would not be shut down.
        """
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._drain_or_end, 0.0 if sig == signal.SIGINT else self._drain_delay_s)

    def _drain_or_end(self, delay_s: float) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(delay_s), name="drain")
        else:
            self._draining.cancel()
            self._engine.stop_at_once()
            self._end("The server was told to shut down at once.")

    def _end(self, reason: str) -> None:
        """Ends open requests with an error, and the server."""
        self._engine.fail_open_requests(reason)
        self.should_exit = True

    async def _drain(self, delay_s: float) -> None:
        if delay_s and self._engine.state is EngineState.READY:  # else balancers send nothing here
            logger.info("draining: /ready says 503, new requests are served for %g s more (--drain-delay-s)", delay_s)
            self._engine.leave()
            await self.wait_for_balancers(delay_s)
        num_open = self._admission.num_inside
        logger.info("draining: %d open requests have %g s to finish", num_open, self._shutdown_timeout_s)
        self._engine.drain()
        try:
            async with asyncio.timeout(self._shutdown_timeout_s):
                while self._admission.num_inside:
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            logger.warning("drain timed out; ending %d requests", self._admission.num_inside)
        self._end("The server is shutting down and could not finish this request in time.")

    async def wait_for_balancers(self, delay_s: float) -> None:
        """Waits until load balancers should have noticed that /ready says 503."""
        await asyncio.sleep(delay_s)

    def exit_now(self) -> None:
        """Ends the server without draining, because its engine is gone for good."""
        self.should_exit = True


def serve(settings: Settings, engine_process: EngineProcess) -> None:
    """Serves until told to stop.

    Args:
        engine_process: started already.

    Raises:
        StartupError: the server cannot start or its engine cannot be kept alive; the message is one line.
    """
    credentials, tls = settings.credentials(), settings.tls()
    if settings.otel_endpoint is not None:
        require_tracing()
    settings = settings.without_secrets()
    configure_logging(settings.log_level, settings.log_format)
    logger.info("qwen-server", extra={"fields": server_version()._asdict()})
    if (demo := demo_name(local_folder(settings.model))) is not None:
        logger.info("%s is %s", demo, ABOUT)
    fatal: list[str] = []

    def on_fatal(message: str) -> None:
        fatal.append(message)
        server.exit_now()

    tokenizer, defaults, engine = load(settings, on_fatal=on_fatal, engine_process=engine_process)
    server = draining_server(settings, tokenizer, defaults, engine, credentials, tls)
    listeners = open_listeners(settings.host, settings.port, send_timeout_s=settings.send_timeout_s)
    with contextlib.ExitStack() as opened:
        for listener in listeners:
            opened.enter_context(listener)
        scheme = "http" if tls is None else "https"
        where = " and ".join(addresses_of(listeners, scheme))
        names = (*settings.served_names, *settings.adapters)
        logger.info("listening on %s (model %s)", where, ", ".join(names))
        url = address_to_open(listeners, scheme)
        engine.on_first_ready(lambda: logger.info("ready: chat at %s/ in a browser; the API is at %s/v1", url, url))
        server.run(sockets=listeners)
    if fatal:
        raise StartupError(fatal[0])


def draining_server(
    settings: Settings,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    engine: EngineClient,
    credentials: Credentials | None = None,
    tls: Tls | None = None,
) -> DrainingServer:
    """Returns a server, to be run on bound sockets.

    Args:
        engine: not started yet; the server starts and stops it.
        credentials: who may use the API; by default whom the settings name.
        tls: certificate and key, or None for plain HTTP.
    """
    # Streams end when they are finished or the drain is over, not because a signal came.
    AppStatus.enable_automatic_graceful_drain = False
    app = create_app(settings, tokenizer, defaults, engine, credentials)
    app.state.services.store.open()  # a file that cannot be used stops the start, in one line
    return DrainingServer(
        uvicorn.Config(
            app,
            http=partial(HttpProtocol, send_timeout_s=settings.send_timeout_s),  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # callers.py reads those of trusted proxies
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_WORDS_S,
            lifespan="on",
            ws="none",
            **({} if tls is None else tls.uvicorn_options()),
        ),
        engine,
        app.state.services.admission,
        drain_delay_s=settings.drain_delay_s,
        shutdown_timeout_s=settings.shutdown_timeout_s,
    )
