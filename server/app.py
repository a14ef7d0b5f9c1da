"""Builds the web application out of its parts; holds no state of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from model.contract.tokenizer import Tokenizer
from server.conversion.converter import Converter
from server.conversion.defaults import GenerationDefaults
from server.conversion.prompt_encoding import PromptEncoder
from server.engine.client import EngineClient
from server.engine.supervisor import EngineState
from server.gates.admission import Admission, AdmissionMiddleware
from server.gates.auth import AuthMiddleware
from server.gates.browsers import BrowserGuardMiddleware
from server.gates.callers import CallerMiddleware
from server.gates.limits import BodyLimitMiddleware
from server.gates.middleware import REQUEST_ID_HEADER, RequestContextMiddleware, RootPathMiddleware
from server.gates.rate_limits import RateLimiter, RateLimitMiddleware
from server.grammars.check import GrammarChecker
from server.loop_watch import EventLoopWatchdog, LoopCollector
from server.metrics import Metrics
from server.routes import chat, completions, health, models, page, tokenize
from server.server_config import ServerConfig
from server.services import Services
from server.tracing import Tracer, TracingMiddleware
from server.version import server_version
from server.wire.errors import install_error_handlers
from server.wire.openapi import install_openapi


def create_app(
    config: ServerConfig, tokenizer: Tokenizer, defaults: GenerationDefaults, engine: EngineClient
) -> FastAPI:
    """Returns the application; its lifespan starts and stops the engine.

    Args:
        config: of the HTTP side.
        tokenizer: of the checkpoint.
        defaults: of the checkpoint.
        engine: not started yet.
    """
    metrics = Metrics(
        config.served_names[0], lambda: engine.stats, lambda: engine.num_restarts, lambda: engine.cache_config
    )
    engine.on_step(metrics.observe_step)
    watchdog = EventLoopWatchdog()
    metrics.registry.register(LoopCollector(watchdog, lambda: engine.stats))
    grammars = GrammarChecker(tokenizer)
    converter = Converter(
        PromptEncoder(tokenizer, defaults, config.chat_format, guards_results=config.guard_tool_results),
        grammars,
        config.max_request_tokens,
        clamp_max_tokens=config.clamp_max_tokens,
        default_max_tokens=_default_max_tokens(config, defaults),
        truncation=config.truncation,
    )
    tracer = None if config.otel_endpoint is None else Tracer(config.otel_endpoint)
    admission = Admission(
        engine, metrics, max_queue_requests=config.max_queue_requests, max_queue_tokens=config.max_queue_tokens
    )
    limiter = RateLimiter(config.max_requests_per_minute, config.max_tokens_per_minute)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        grammars.start()
        try:
            async with watchdog.watching():
                yield
        finally:
            grammars.close()
            converter.encoder.off_loop.close()
            await engine.stop()
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="qwen-server",
        version=server_version().version,
        summary="An OpenAI-compatible API for first-generation Qwen checkpoints",
        lifespan=lifespan,
        docs_url=None,  # routes/page has a reference that needs no other host
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # a body without a Content-Type is JSON
    )
    app.state.services = Services(
        config=config,
        tokenizer=tokenizer,
        converter=converter,
        engine=engine,
        admission=admission,
        limiter=limiter,
        metrics=metrics,
    )
    install_openapi(app)
    routers = [module.router for module in (chat, completions, models, tokenize, health, page)]
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    install_error_handlers(app, [route.path for route in routes])
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=config.max_body_bytes, metrics=metrics)
    app.add_middleware(AdmissionMiddleware, admission=admission)
    if limiter.has_limits:
        app.add_middleware(RateLimitMiddleware, limiter=limiter, metrics=metrics)
    app.add_middleware(CallerMiddleware, credentials=config.credentials, trusted_proxies=config.trusted_proxies)
    if config.credentials.required:
        app.add_middleware(AuthMiddleware, credentials=config.credentials, metrics=metrics)
    if config.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    app.add_middleware(
        BrowserGuardMiddleware,
        metrics=metrics,
        host=config.host,
        allowed_hosts=config.allowed_hosts,
        allowed_origins=config.cors_allow_origins,
    )
    if tracer is not None:
        app.add_middleware(TracingMiddleware, tracer=tracer)
    app.add_middleware(
        RequestContextMiddleware, metrics=metrics, is_leaving=lambda: engine.state is EngineState.DRAINING
    )
    if config.root_path:
        app.add_middleware(RootPathMiddleware, root_path=config.root_path)
    return app


def _default_max_tokens(config: ServerConfig, defaults: GenerationDefaults) -> int | None:
    if config.default_max_tokens == "context":
        return None
    return config.default_max_tokens or defaults.max_new_tokens
