"""Numbers for Prometheus, under vLLM's names, in a registry of each app's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.contract.messages import EngineStats
from server.telemetry.request_metrics import LATENCY_BUCKETS_S, RequestFamilies, RequestMetrics
from server.version import server_version

_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOTALS = [name for name in EngineStats.__struct_fields__ if name.endswith("_total")]
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class EngineReadings:
    """What is told of the engine, read whenever Prometheus asks.

    Attributes:
        stats: state after the last step.
        num_restarts: engine processes started after one died.
        cache_config: labels of `vllm:cache_config_info`; none before an engine was ready.
        adapters: names of those with running requests, and of those whose requests all wait.
        max_loras: most adapters; with 0 `vllm:lora_requests_info` is left out.
    """

    stats: Callable[[], EngineStats] = EngineStats
    num_restarts: Callable[[], int] = lambda: 0
    cache_config: Callable[[], Mapping[str, str]] = dict
    adapters: Callable[[], tuple[Sequence[str], Sequence[str]]] = lambda: ((), ())
    max_loras: int = 0


class _EngineCollector(Collector):
    """Reads the engine's state when asked; totals go on counting over an engine's restarts."""

    def __init__(self, model_name: str, engine: EngineReadings) -> None:
        self._model_name = model_name
        self._engine = engine
        self._before_restart = EngineStats()
        self._last = EngineStats()

    def observe(self, stats: EngineStats) -> None:
        """Takes the state after a step; a total that fell shows that the engine is a new one."""
        if stats.num_steps_total < self._last.num_steps_total:
            self._before_restart = _sum_totals(self._before_restart, self._last)
        self._last = stats

    def collect(self) -> Iterator[Metric]:
        """Yields the engine's metrics."""
        now = self._engine.stats()
        totals = _sum_totals(self._before_restart, self._last)
        used = now.num_blocks - now.num_free_blocks  # cached blocks are free: they can be taken at once
        gauges = (
            ("vllm:num_requests_running", "Sequences being computed.", now.num_running),
            ("vllm:num_requests_waiting", "Sequences waiting for their turn.", now.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of KV cache blocks in use.", used / max(1, now.num_blocks)),
            ("qwen:kv_cache_blocks", "KV cache blocks there are.", now.num_blocks),
            ("qwen:kv_cache_blocks_free", "KV cache blocks that nobody uses.", now.num_free_blocks),
            ("qwen:kv_cache_blocks_cached", "Free KV cache blocks kept for equal prompts.", now.num_cached_blocks),
        )
        for name, help_text, value in gauges:
            gauge = GaugeMetricFamily(name, help_text, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        cache_config = self._engine.cache_config()
        if cache_config:
            info = GaugeMetricFamily(
                "vllm:cache_config_info", "The KV cache, in labels.", labels=["model_name", *cache_config]
            )
            info.add_metric([self._model_name, *cache_config.values()], 1)
            yield info
        if self._engine.max_loras:  # routers send requests where their adapter is in use
            running, waiting = map(",".join, self._engine.adapters())
            info = GaugeMetricFamily(
                "vllm:lora_requests_info",
                "When this was read, Unix time; in labels, the adapters of requests.",
                labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
            )
            info.add_metric([str(self._engine.max_loras), running, waiting], time.time())
            yield info
        counters = (
            ("vllm:num_preemptions", "Sequences put back to wait.", totals.num_preemptions_total),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", totals.prefix_cache_queries_total),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", totals.prefix_cache_hits_total),
            ("vllm:spec_decode_num_drafts", "Guesses of what follows a sequence.", totals.num_drafts_total),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed ahead.", totals.num_draft_tokens_total),
            ("vllm:spec_decode_num_accepted_tokens", "Tokens guessed right.", totals.num_accepted_tokens_total),
            ("qwen:engine_steps", "Steps of the loop.", totals.num_steps_total),
            ("qwen:engine_restarts", "Engine processes started after one died.", self._engine.num_restarts()),
        )
        for name, help_text, value in counters:
            counter = CounterMetricFamily(name, help_text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


def _sum_totals(a: EngineStats, b: EngineStats) -> EngineStats:
    return EngineStats(**{name: getattr(a, name) + getattr(b, name) for name in _TOTALS})


class Metrics:
    """All metrics of one app.

    Args:
        model_name: value of the label.
        engine: reads the engine's state.
    """

    def __init__(self, model_name: str, engine: EngineReadings = EngineReadings()) -> None:  # immutable
        self.registry = CollectorRegistry()
        self._engine = _EngineCollector(model_name, engine)
        self.registry.register(self._engine)
        build = server_version()
        Info("qwen:build", "What runs here.", registry=self.registry).info(
            {"version": build.version, "commit": build.commit or ""}
        )
        self._model_name = model_name
        self._families = RequestFamilies(self.registry)
        self._of_model: dict[str, RequestMetrics] = {}
        self.of(model_name)  # the names are there before the first request
        self._rejected = Counter(
            "qwen:requests_rejected",
            "Requests refused before any work, by code.",
            ["model_name", "code"],
            registry=self.registry,
        )
        self._iteration_tokens = Histogram(
            "vllm:iteration_tokens_total",
            "Tokens computed in a step.",
            ["model_name"],
            buckets=_STEP_TOKEN_BUCKETS,
            registry=self.registry,
        ).labels(model_name)
        self._http_requests = Counter(
            "http_requests", "HTTP requests.", ["method", "handler", "status"], registry=self.registry
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds",
            "Until the last byte of the reply.",
            ["method", "handler"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )

    def of(self, model_name: str) -> RequestMetrics:
        """Returns the metrics of the requests of the model, or of one of its adapters."""
        found = self._of_model.get(model_name)
        if found is None:
            found = self._of_model[model_name] = RequestMetrics(self._families, model_name)
        return found

    def observe_step(self, stats: EngineStats) -> None:
        """Takes the engine's state after a step."""
        self._engine.observe(stats)
        if stats.num_step_tokens:
            self._iteration_tokens.observe(stats.num_step_tokens)

    def count_rejected(self, code: str) -> None:
        """Counts a request that was refused."""
        self._rejected.labels(self._model_name, code).inc()

    def observe_http(self, method: str, handler: str, status: int, duration_s: float) -> None:
        """Counts an HTTP request; `handler` is the route's pattern, never a client's text."""
        method = method if method in _METHODS else "other"
        self._http_requests.labels(method, handler, str(status)).inc()
        self._http_duration.labels(method, handler).observe(duration_s)

    def render(self) -> bytes:
        """Returns the text that Prometheus scrapes."""
        return generate_latest(self.registry)
