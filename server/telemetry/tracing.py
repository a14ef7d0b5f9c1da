"""OpenTelemetry traces: one span a request, sent to a collector in the background. Off unless a collector is named.

The libraries are the extra `otel` and are imported only here, when a collector is named. A span has the figures of the
request's log line, and never a prompt.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.contract.errors import ConfigError
from server.gates.request_context import request_figures_var, request_id_var, route_path

logger = logging.getLogger(__name__)

_SERVICE = "qwen-server"
_LAST_SPANS_S = 2.0
_QUIET = frozenset({"/health", "/ready", "/metrics"})
# Names that figures have in OpenTelemetry's semantic conventions.
_NAMES = {
    "reason": "gen_ai.response.finish_reasons",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}


def require_tracing() -> None:
    """Returns if OpenTelemetry is installed.

    Raises:
        ConfigError: it is not.
    """
    for module in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise ConfigError("--otel-endpoint needs OpenTelemetry: pip install 'qwen-server[otel]'")


class Tracer:
    """Makes spans and sends them.

    Args:
        endpoint: URL of an OTLP/HTTP collector; without a path, /v1/traces is added.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        host = endpoint.partition("://")[2]
        url = endpoint if "/" in host.rstrip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        # A provider of our own, not the process-wide one: an app holds no global state.
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": _SERVICE}),
            shutdown_on_exit=False,  # `close` ends it, without waiting for long
        )
        self._exporter: Any = OTLPSpanExporter(endpoint=url)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(_SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, scope: Scope) -> Any:
        """Starts the span of a request; a `traceparent` header makes it part of its client's trace."""
        from opentelemetry.trace import SpanKind

        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        return self._tracer.start_span(
            scope["method"],
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "qwen.request_id": request_id_var.get()},
        )

    def end(self, span: Any, scope: Scope, status: int, figures: dict[str, object]) -> None:
        """Ends the span of a request.

        Args:
            span: the one that `start` returned.
            scope: the scope with its route.
            status: HTTP status; 0 if there was no reply.
            figures: figures of the generation's log line.
        """
        from opentelemetry.trace import StatusCode

        route = route_path(scope)
        if route is not None:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        for name, value in figures.items():
            if isinstance(value, str | int | float):
                span.set_attribute(_NAMES.get(name, f"qwen.{name}"), [value] if name == "reason" else value)
        if status >= 500 or status == 0 or "error" in figures:
            span.set_status(StatusCode.ERROR, str(figures.get("error", "")))
        span.end()

    def close(self) -> None:
        """Sends the spans that are left; a dead or slow collector delays the server's end by two seconds at most."""
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(_LAST_SPANS_S)
        if ending.is_alive():
            logger.warning("the trace collector did not take the last spans within %g s", _LAST_SPANS_S)
            self._exporter.shutdown()  # no more tries


class TracingMiddleware:
    """Gives each request a span that ends with the last byte of the reply; probes and scrapes get none."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        span = self._tracer.start(scope)
        figures: dict[str, object] = {}
        token = request_figures_var.set(figures)
        status = 0

        async def watching_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watching_send)
        finally:
            request_figures_var.reset(token)
            self._tracer.end(span, scope, status, figures)
