"""What Prometheus is told of requests: under vLLM's names, by the model or adapter that served them."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_INTER_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKEN_BUCKETS = (*(digit * 10**power for power in range(5) for digit in (1, 2, 5)), 100_000)
_CHOICE_BUCKETS = (1, 2, 5, 10, 20, 50, 100)

_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:time_to_first_token_seconds": ("From arrival to the first token.", _TTFT_BUCKETS_S),
    "vllm:inter_token_latency_seconds": ("Between tokens of a choice.", _INTER_TOKEN_BUCKETS_S),
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


class RequestFamilies:
    """The metrics before it is said whose requests they are of."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, ["model_name", *labels], registry=registry)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of requests served.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated for clients.")
        ended = "Choices that ended, by reason; abort is a client that went away."
        self.finished = counter("vllm:request_success", ended, "finished_reason")
        self.histograms = {
            name: Histogram(name, help_text, ["model_name"], buckets=buckets, registry=registry)
            for name, (help_text, buckets) in _HISTOGRAMS.items()
        }


class RequestMetrics:
    """The metrics of the requests of one model or adapter.

    Args:
        families: of the app.
        model_name: its name.
    """

    def __init__(self, families: RequestFamilies, model_name: str) -> None:
        def histogram(name: str) -> Histogram:
            return families.histograms[name].labels(model_name)

        self._finished = families.finished
        self._model_name = model_name
        self.prompt_tokens = families.prompt_tokens.labels(model_name)
        self.generation_tokens = families.generation_tokens.labels(model_name)
        self.time_to_first_token = histogram("vllm:time_to_first_token_seconds")
        self.inter_token_latency = histogram("vllm:inter_token_latency_seconds")
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
        """Takes the figures of a prompt whose choices have ended.

        Args:
            num_prompt_tokens: its length.
            max_tokens: the most that a choice was allowed.
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
