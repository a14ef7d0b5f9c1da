"""Builds the web application out of its parts; this module holds no state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from model.contract.tokenizer import Tokenizer
from server.batches.runner import BatchRunner
from server.conversion.converter import Converter
from server.conversion.defaults import GenerationDefaults
from server.conversion.prompt_encoding import PromptEncoder
from server.engine.client import EngineClient
from server.engine.supervisor import EngineState
from server.files.stored_files import MAX_FILE_BYTES, Uploads
from server.gates.admission import Admission
from server.gates.body_limits import BodyLimitMiddleware
from server.gates.browsers import BrowserGuardMiddleware
from server.gates.credentials import Credentials
from server.gates.gate import GateMiddleware, WorkRoutes
from server.gates.middleware import REQUEST_ID_HEADER, RequestContextMiddleware, RootPathMiddleware
from server.gates.rate_limits import RateLimiter
from server.grammars.check import GrammarChecker
from server.routes import (
    adapters,
    batches,
    chat,
    completions,
    conversations,
    files,
    health,
    messages,
    models,
    page,
    responses,
    tokenize,
)
from server.services import Services
from server.settings import Settings
from server.store.store import Store
from server.telemetry.loop_watch import EventLoopWatchdog, LoopCollector
from server.telemetry.metrics import EngineReadings, Metrics
from server.telemetry.tracing import Tracer, TracingMiddleware
from server.version import server_version
from server.wire.anthropic_errors import AnthropicErrorMiddleware
from server.wire.errors import install_error_handlers
from server.wire.openapi import install_openapi

ROUTERS = [
    *(module.router for module in (chat, completions, responses, conversations, messages, files, batches)),
    *(module.router for module in (adapters, models, tokenize, health, page)),
    responses.generating,
]


def create_app(
    settings: Settings,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    engine: EngineClient,
    credentials: Credentials | None = None,
) -> FastAPI:
    """Returns the application; its lifespan starts and stops the engine.

    Args:
        engine: not started yet.
        credentials: who may use the API; by default whom the settings name.
    """
    credentials = settings.credentials() if credentials is None else credentials
    tracer = None if settings.otel_endpoint is None else Tracer(settings.otel_endpoint)
    generating = FastAPI(openapi_url=None)  # answers the lines of batches, which have passed the gates
    services = _services(settings, credentials, tokenizer, defaults, engine, generating)
    app = FastAPI(
        title="qwen-server",
        version=server_version().version,
        summary="An OpenAI-compatible API for first-generation Qwen checkpoints",
        lifespan=_lifespan(services, tracer),
        docs_url=None,  # routes/page has a reference that needs no other host
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # a body without a Content-Type is JSON
    )
    app.state.services = generating.state.services = services
    for router in (chat.router, completions.router, responses.generating):
        generating.include_router(router)
    install_error_handlers(generating, [])
    install_openapi(app)
    for router in ROUTERS:
        app.include_router(router)
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    install_error_handlers(app, [route.path for route in routes])
    _put_gates_before(app, services, WorkRoutes(routes), tracer)
    return app


def _services(
    settings: Settings,
    credentials: Credentials,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    engine: EngineClient,
    generating: FastAPI,
) -> Services:
    readings = EngineReadings(
        stats=lambda: engine.stats,
        num_restarts=lambda: engine.num_restarts,
        cache_config=lambda: engine.cache_config,
        adapters=engine.adapters_in_use,
        max_loras=settings.max_adapters,
    )
    metrics = Metrics(settings.served_names[0], readings)
    engine.on_step(metrics.observe_step)
    converter = Converter(
        PromptEncoder(tokenizer, defaults, settings.chat_format, guards_results=settings.guard_tool_results),
        GrammarChecker(tokenizer),
        settings.max_request_tokens,
        clamp_max_tokens=settings.clamp_max_tokens,
        default_max_tokens=_default_max_tokens(settings, defaults),
        truncation=settings.truncation,
    )
    store = Store(settings.store, settings.store_bytes)
    return Services(
        settings=settings.without_secrets(),
        credentials=credentials,
        tokenizer=tokenizer,
        converter=converter,
        engine=engine,
        admission=Admission(
            engine,
            metrics,
            max_queue_requests=settings.max_queue_requests,
            max_queue_tokens=settings.max_queue_tokens,
        ),
        limiter=RateLimiter(settings.max_requests_per_minute, settings.max_tokens_per_minute),
        metrics=metrics,
        store=store,
        uploads=Uploads(store),
        batches=BatchRunner(
            store,
            generating,
            engine,
            credentials,
            num_slots=2 * settings.max_num_seqs,  # while one half runs the other is made ready
            max_line_bytes=settings.max_body_bytes,
        ),
    )


def _lifespan(services: Services, tracer: Tracer | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    engine, store, grammars = services.engine, services.store, services.converter.grammars
    watchdog = EventLoopWatchdog()
    services.metrics.registry.register(LoopCollector(watchdog, lambda: engine.stats))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        store.start()
        await engine.start()
        grammars.start()
        try:
            await services.uploads.discard_unfinished()
            await services.batches.start()
            await services.background.resume()
            async with watchdog.watching():
                yield
        finally:
            await services.batches.stop()
            await services.runs.stop()
            grammars.close()
            services.off_loop.close()
            await engine.stop()
            await asyncio.to_thread(store.close)
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

    return lifespan


def _put_gates_before(app: FastAPI, services: Services, work: WorkRoutes, tracer: Tracer | None) -> None:
    """Adds the middlewares; the last one is the outermost."""
    settings, metrics = services.settings, services.metrics
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=min(MAX_FILE_BYTES, settings.store_bytes // 2),
        metrics=metrics,
    )
    app.add_middleware(
        GateMiddleware,
        credentials=services.credentials,
        trusted_proxies=settings.trusted_proxy,
        limiter=services.limiter,
        admission=services.admission,
        work=work,
        metrics=metrics,
    )
    if settings.cors_allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_allow_origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    app.add_middleware(
        BrowserGuardMiddleware,
        metrics=metrics,
        host=settings.host,
        allowed_hosts=settings.allowed_host,
        allowed_origins=settings.cors_allow_origin,
    )
    if tracer is not None:
        app.add_middleware(TracingMiddleware, tracer=tracer)
    app.add_middleware(
        RequestContextMiddleware, metrics=metrics, is_leaving=lambda: services.engine.state is EngineState.DRAINING
    )
    app.add_middleware(AnthropicErrorMiddleware)
    if settings.root_path:
        app.add_middleware(RootPathMiddleware, root_path=settings.root_path)


def _default_max_tokens(settings: Settings, defaults: GenerationDefaults) -> int | None:
    if settings.default_max_tokens == "context":
        return None
    return settings.default_max_tokens or defaults.max_new_tokens
