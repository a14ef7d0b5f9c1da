"""Metrics of requests, under vLLM's names, labelled with the model or adapter that served them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_INTER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKEN_BUCKETS = (*(digit * 10**power for power in range(5) for digit in (1, 2, 5)), 100_000)
_CHOICE_BUCKETS = (1, 2, 5, 10, 20, 50, 100)

_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:time_to_first_token_seconds": ("From arrival to the first token.", _TTFT_BUCKETS_S),
    "vllm:e2e_request_latency_seconds": ("From arrival to the last token.", LATENCY_BUCKETS_S),
    "vllm:request_queue_time_seconds": ("Waiting for the first step.", LATENCY_BUCKETS_S),
    "vllm:request_prefill_time_seconds": ("From the first step to the first token.", LATENCY_BUCKETS_S),
    "vllm:request_decode_time_seconds": ("From the first token to the last.", LATENCY_BUCKETS_S),
    "vllm:request_prompt_tokens": ("Tokens of a prompt.", _TOKEN_BUCKETS),
    "vllm:request_generation_tokens": ("Tokens generated for a choice.", _TOKEN_BUCKETS),
    "vllm:request_max_num_generation_tokens": ("Tokens of a prompt's longest choice.", _TOKEN_BUCKETS),
    "vllm:request_params_n": ("Choices asked for a prompt.", _CHOICE_BUCKETS),
    "vllm:request_params_max_tokens": ("Most tokens a choice may have.", _TOKEN_BUCKETS),
}


class TokenCounts:
    """Counts of a model's tokens. They change with every token, on the event loop alone, so without locks.

    Attributes:
        nums_latencies: latencies between tokens in each bucket, without those of the buckets below it.
        latency_sum_s: sum of these latencies.
        created: Unix time at which counting began.
    """

    __slots__ = ("count", "created", "latency_sum_s", "nums_latencies")

    def __init__(self) -> None:
        self.count = 0
        self.nums_latencies = [0] * (len(_INTER_TOKEN_BUCKETS_S) + 1)
        self.latency_sum_s = 0.0
        self.created = time.time()

    def observe_latency(self, elapsed_s: float, num_tokens: int) -> None:
        """Takes the time that some tokens of a choice took; `num_tokens` is at least 1."""
        self.nums_latencies[bisect_left(_INTER_TOKEN_BUCKETS_S, elapsed_s / num_tokens)] += num_tokens
        self.latency_sum_s += elapsed_s


class _TokenCollector(Collector):
    """Collects `TokenCounts`."""

    def __init__(self) -> None:
        self.of_model: dict[str, TokenCounts] = {}

    def collect(self) -> Iterator[Metric]:
        """Yields the number of tokens, and the times between them."""
        tokens = CounterMetricFamily("vllm:generation_tokens", "Tokens generated for clients.", labels=["model_name"])
        name = "vllm:inter_token_latency_seconds"
        latency = HistogramMetricFamily(name, "Between tokens of a choice.", labels=["model_name"])
        for model_name, counts in self.of_model.items():
            tokens.add_metric([model_name], counts.count, created=counts.created)
            bounds = (*map(str, map(float, _INTER_TOKEN_BUCKETS_S)), "+Inf")
            buckets = list(zip(bounds, accumulate(counts.nums_latencies), strict=True))
            latency.add_metric([model_name], buckets, counts.latency_sum_s)
            latency.add_sample(f"{name}_created", {"model_name": model_name}, counts.created)
        yield tokens
        yield latency


class RequestFamilies:
    """The metrics of all models, without the values of their label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, ["model_name", *labels], registry=registry)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of requests served.")
        self.tokens = _TokenCollector()
        registry.register(self.tokens)
        ended = "Choices that ended, by reason; abort is a client that went away."
        self.finished = counter("vllm:request_success", ended, "finished_reason")
        self.histograms = {
            name: Histogram(name, help_text, ["model_name"], buckets=buckets, registry=registry)
            for name, (help_text, buckets) in _HISTOGRAMS.items()
        }


class RequestMetrics:
    """The metrics of the requests of one model or adapter."""

    def __init__(self, families: RequestFamilies, model_name: str) -> None:
        def histogram(name: str) -> Histogram:
            return families.histograms[name].labels(model_name)

        self._finished = families.finished
        self._model_name = model_name
        self.prompt_tokens = families.prompt_tokens.labels(model_name)
        self.tokens = families.tokens.of_model.setdefault(model_name, TokenCounts())
        self.time_to_first_token = histogram("vllm:time_to_first_token_seconds")
        self.e2e_latency = histogram("vllm:e2e_request_latency_seconds")
        self.queue_time = histogram("vllm:request_queue_time_seconds")
        self.prefill_time = histogram("vllm:request_prefill_time_seconds")
        self.decode_time = histogram("vllm:request_decode_time_seconds")
        self._prompt_length = histogram("vllm:request_prompt_tokens")
        self._reply_length = histogram("vllm:request_generation_tokens")
        self._longest_reply = histogram("vllm:request_max_num_generation_tokens")
        self._n = histogram("vllm:request_params_n")
        self._max_tokens = histogram("vllm:request_params_max_tokens")

    def observe_prompt(self, num_prompt_tokens: int, max_tokens: int, nums_generated: Sequence[int]) -> None:
        """Takes a prompt whose choices have ended.

        Args:
            max_tokens: most tokens that a choice was allowed.
            nums_generated: tokens of each choice.
        """
        self._prompt_length.observe(num_prompt_tokens)
        self._max_tokens.observe(max_tokens)
        self._n.observe(len(nums_generated))
        self._longest_reply.observe(max(nums_generated))
        for num_generated in nums_generated:
            self._reply_length.observe(num_generated)

    def count_finished(self, reason: str) -> None:
        """Counts a choice that ended."""
        self._finished.labels(self._model_name, reason).inc()
