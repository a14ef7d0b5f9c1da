"""Numbers for Prometheus, under the names vLLM made common, in a registry of each app's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.contract.messages import EngineStats
from server.version import server_version

_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_INTER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_TOKEN_BUCKETS = (*(digit * 10**power for power in range(5) for digit in (1, 2, 5)), 100_000)
_CHOICE_BUCKETS = (1, 2, 5, 10, 20, 50, 100)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class _EngineCollector(Collector):
    """Reads the engine's state when asked; totals go on counting over an engine's restarts."""

    def __init__(
        self,
        model_name: str,
        read_stats: Callable[[], EngineStats],
        read_restarts: Callable[[], int],
        read_cache_config: Callable[[], Mapping[str, str]],
    ) -> None:
        self._model_name = model_name
        self._read_stats = read_stats
        self._read_restarts = read_restarts
        self._read_cache_config = read_cache_config
        self._before_restart = EngineStats()
        self._last = EngineStats()

    def observe(self, stats: EngineStats) -> None:
        """Takes the state after a step; a total that fell tells of a new engine."""
        if stats.num_steps_total < self._last.num_steps_total:
            self._before_restart = _sum_totals(self._before_restart, self._last)
        self._last = stats

    def collect(self) -> Iterator[Metric]:
        """Yields the engine's metrics."""
        now = self._read_stats()
        totals = _sum_totals(self._before_restart, self._last)
        used = now.num_blocks - now.num_free_blocks  # cached blocks count as free: they can be taken at once
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
        cache_config = self._read_cache_config()
        if cache_config:
            info = GaugeMetricFamily(
                "vllm:cache_config_info", "The KV cache, in labels.", labels=["model_name", *cache_config]
            )
            info.add_metric([self._model_name, *cache_config.values()], 1)
            yield info
        counters = (
            ("vllm:num_preemptions", "Sequences put back to wait.", totals.num_preemptions_total),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", totals.prefix_cache_queries_total),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the cache.", totals.prefix_cache_hits_total),
            ("qwen:engine_steps", "Steps of the loop.", totals.num_steps_total),
            ("qwen:engine_restarts", "Engine processes started after one died.", self._read_restarts()),
        )
        for name, help_text, value in counters:
            counter = CounterMetricFamily(name, help_text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter


def _sum_totals(a: EngineStats, b: EngineStats) -> EngineStats:
    return EngineStats(
        num_preemptions_total=a.num_preemptions_total + b.num_preemptions_total,
        prefix_cache_queries_total=a.prefix_cache_queries_total + b.prefix_cache_queries_total,
        prefix_cache_hits_total=a.prefix_cache_hits_total + b.prefix_cache_hits_total,
        num_steps_total=a.num_steps_total + b.num_steps_total,
    )


class Metrics:
    """All metrics of one app.

    Args:
        model_name: the label of the model.
        read_stats: the engine's state now.
        read_restarts: how often it was restarted.
        read_cache_config: the labels of `vllm:cache_config_info`; none while no engine has been ready.
    """

    def __init__(
        self,
        model_name: str,
        read_stats: Callable[[], EngineStats],
        read_restarts: Callable[[], int],
        read_cache_config: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.registry = CollectorRegistry()
        self._engine = _EngineCollector(model_name, read_stats, read_restarts, read_cache_config)
        self.registry.register(self._engine)
        build = server_version()
        Info("qwen:build", "What runs here.", registry=self.registry).info(
            {"version": build.version, "commit": build.commit or ""}
        )
        self._model_name = model_name
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of requests served.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated for clients.")
        self._requests = Counter(
            "vllm:request_success",
            "Choices that ended, by reason; abort is a client that went away.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._rejected = Counter(
            "qwen:requests_rejected",
            "Requests refused before any work, by code.",
            ["model_name", "code"],
            registry=self.registry,
        )
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token.", _TTFT_BUCKETS_S
        )
        self.inter_token_latency = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of a choice.", _INTER_TOKEN_BUCKETS_S
        )
        self.e2e_latency = self._histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token.", _LATENCY_BUCKETS_S
        )
        self.queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "Waiting for the first step.", _LATENCY_BUCKETS_S
        )
        self.prefill_time = self._histogram(
            "vllm:request_prefill_time_seconds", "From the first step to the first token.", _LATENCY_BUCKETS_S
        )
        self.decode_time = self._histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", _LATENCY_BUCKETS_S
        )
        self._request_prompt_tokens = self._histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKEN_BUCKETS
        )
        self._request_generation_tokens = self._histogram(
            "vllm:request_generation_tokens", "Tokens generated for a choice.", _TOKEN_BUCKETS
        )
        self._request_max_generation_tokens = self._histogram(
            "vllm:request_max_num_generation_tokens", "Tokens of a prompt's longest choice.", _TOKEN_BUCKETS
        )
        self._request_n = self._histogram("vllm:request_params_n", "Choices asked for a prompt.", _CHOICE_BUCKETS)
        self._request_max_tokens = self._histogram(
            "vllm:request_params_max_tokens", "Most tokens a choice may have.", _TOKEN_BUCKETS
        )
        self._iteration_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens computed in a step.", _STEP_TOKEN_BUCKETS
        )
        self._http_requests = Counter(
            "http_requests", "HTTP requests.", ["method", "handler", "status"], registry=self.registry
        )
        self._http_duration = Histogram(
            "http_request_duration_seconds",
            "Until the last byte of the reply.",
            ["method", "handler"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, help_text, ["model_name"], buckets=buckets, registry=self.registry)
        return histogram.labels(self._model_name)

    def observe_step(self, stats: EngineStats) -> None:
        """Takes the engine's state after a step."""
        self._engine.observe(stats)
        if stats.num_step_tokens:
            self._iteration_tokens.observe(stats.num_step_tokens)

    def observe_prompt(self, num_prompt_tokens: int, max_tokens: int, nums_generated: Sequence[int]) -> None:
        """Takes the figures of a prompt whose choices have ended.

        Args:
            num_prompt_tokens: its length.
            max_tokens: the most that a choice was allowed.
            nums_generated: tokens of each choice.
        """
        self._request_prompt_tokens.observe(num_prompt_tokens)
        self._request_max_tokens.observe(max_tokens)
        self._request_n.observe(len(nums_generated))
        self._request_max_generation_tokens.observe(max(nums_generated))
        for num_generated in nums_generated:
            self._request_generation_tokens.observe(num_generated)

    def count_finished(self, reason: str) -> None:
        """Counts a choice that ended."""
        self._requests.labels(self._model_name, reason).inc()

    def count_rejected(self, code: str) -> None:
        """Counts a request that was refused."""
        self._rejected.labels(self._model_name, code).inc()

    def observe_http(self, method: str, handler: str, status: int, duration_s: float) -> None:
        """Counts an HTTP request; `handler` is the route's pattern, never a client's text."""
        method = method if method in _METHODS else "other"
        self._http_requests.labels(method, handler, str(status)).inc()
        self._http_duration.labels(method, handler).observe(duration_s)

    def render(self) -> bytes:
        """Returns the text Prometheus scrapes."""
        return generate_latest(self.registry)
