"""What the model asks of a device. One implementation a kind of device; the rest of `model/` never names one."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from model.adapters.low_rank import LowRankUpdate
from model.backends.weights import GPTQTensors, GroupedWeight
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.sampling.sampling_row import SampleTokens

LinearKernel = Callable[[torch.Tensor], torch.Tensor]

# The most tokens of a step with prompts that is recorded; for longer ones a device takes longer than their launches.
MAX_RECORDED_TOKENS = 1024

# Waits for tensors on their way to the host, and returns them.
HostCopy = Callable[[], list[torch.Tensor]]


class LowRankTable(Protocol):
    """The low-rank factors that adapters have for one linear layer, by slot."""

    def prepare(self, updates: AbstractSequence[LowRankUpdate]) -> tuple[Any, int]:
        """Lays the factors of one adapter out for the device; changes nothing, so any thread may call it.

        Returns:
            What `put` takes, and its bytes.

        Raises:
            AdapterError: a factor is beyond what the activations' dtype can hold.
        """
        ...

    def put(self, slot: int, prepared: Any | None) -> None:
        """Makes what was prepared, or nothing, the factors of a slot."""
        ...

    def add(self, out: torch.Tensor, x: torch.Tensor, plan: Any) -> torch.Tensor:
        """Adds to each row what its adapter has for it; the rows of others are left as they are.

        Args:
            out: [T, N], the layer's own results; may be overwritten.
            x: [T, K].
            plan: what `Backend.plan_adapters` returned for the step.
        """
        ...


@dataclass(frozen=True, slots=True)
class StepContext:
    """What the steps of a runner share, whatever they hold; made once, when the cache stands.

    Attributes:
        forward: the model, from a batch to hidden states [T, hidden_size].
        logits: its output layer, from hidden states [R, hidden_size] to logits [R, vocab_size] float32.
        config: the checkpoint's numbers.
        cache: keys and values.
        last_ids: [max_num_seqs] int64, where every step leaves the ids it sampled.
        max_model_len: the most tokens of a sequence.
        max_num_tokens: the most tokens of a step.
        any_rank: whether something is true on any of the ranks that share the model: they must record the same steps,
            whatever each has time for. All ask equally often. None where there is one rank.
    """

    forward: Callable[[ForwardBatch], torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor]
    config: ModelConfig
    cache: KVCache
    last_ids: torch.Tensor
    max_model_len: int
    max_num_tokens: int
    any_rank: Callable[[bool], bool] | None = None

    def is_on_any_rank(self, is_true: bool) -> bool:
        """Whether something is true here, or on another rank."""
        return is_true if self.any_rank is None else self.any_rank(is_true)


class DecodeGraphs(Protocol):
    """Decode steps that were recorded at the start and are replayed."""

    @property
    def max_num_rows(self) -> int:
        """The most sequences of a step, perhaps 0; larger ones run as any other."""
        ...

    def run(self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]) -> torch.Tensor:
        """Runs a step of one new token a sequence.

        Args:
            spans: at most `max_num_rows` sequences; a token may be `UNKNOWN_TOKEN`.
            sources: for each, where an unknown token is in `last_ids`, else -1.

        Returns:
            Logits [S, vocab_size] float32, overwritten by the next run.
        """
        ...


class Steps(Protocol):
    """Runs steps of any kind, in the backend's own layout."""

    def run(self, spans: AbstractSequence[SequenceSpan], sources: AbstractSequence[int]) -> torch.Tensor:
        """Runs a step.

        Args:
            spans: its sequences; the last token of each may be `UNKNOWN_TOKEN`.
            sources: for each, where an unknown token is in `last_ids`, else -1.

        Returns:
            The hidden states of the rows whose logits are needed, [R, hidden_size].
        """
        ...


class Backend(Protocol):
    """Device operations. Implementations hold no state of a request; a plan is made anew each step.

    Attributes:
        device: where parameters, cache and activations live.
        runs_ahead: whether work is queued, so that the next step can be launched while one runs.
        sample_tokens: picks tokens from logits; None leaves it to the sampler's torch operations.
    """

    device: torch.device
    runs_ahead: bool
    sample_tokens: SampleTokens | None

    def resolve_dtype(self, requested: str, declared: str | None) -> torch.dtype:
        """Chooses the activation dtype by the one requested, perhaps "auto", and the one the checkpoint declares.

        Raises:
            ConfigError: the device cannot compute in the requested dtype.
        """
        ...

    def available_memory_bytes(self, gpu_memory_utilization: float) -> int:
        """Bytes that the KV cache and the steps may take now that the weights are loaded."""
        ...

    def measure_step_bytes(self, run: Callable[[], object]) -> int:
        """Bytes that the largest step takes while it runs, where that must be set aside; else 0, without running it."""
        ...

    def step_table_bytes(self, config: ModelConfig, max_num_seqs: int, max_model_len: int, block_size: int) -> int:
        """Bytes of what is kept for all steps beside weights and cache, and grows with the longest sequence."""
        ...

    def release_memory(self) -> None:
        """Gives back what is kept for reuse; called after running out of memory."""
        ...

    def set_num_threads(self, num_threads: int | None, weights_bytes: int) -> None:
        """Sets how many CPU threads tensor work uses; None leaves the choice to the backend."""
        ...

    def default_max_num_batched_tokens(self) -> int:
        """A step's token budget when none is asked for."""
        ...

    def default_max_step_ms(self) -> int:
        """How long a step with prompts and decodes of others should take when nothing is asked for; 0 is any time."""
        ...

    def prepare_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool = False
    ) -> LinearKernel:
        """Lays out a weight for multiplying.

        Args:
            weight: [N, K]; the caller keeps no reference, so its memory can be reused.
            bias: [N] or None.
            wide_results: whether results should be float32, unrounded, where that costs nothing.

        Returns:
            A function from [T, K] to [T, N].
        """
        ...

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """Lays out a GPTQ weight, to which the caller keeps no reference, for multiplying activations of a dtype.

        Returns:
            A function from [T, K] to [T, N] and the bytes it holds; None if the caller should expand the weight.
        """
        ...

    def make_low_rank_table(
        self,
        num_inputs: int,
        num_outputs: int,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        *,
        num_parts: int = 1,
    ) -> LowRankTable:
        """Makes room for the factors of one linear layer.

        Args:
            num_inputs: K.
            num_outputs: N.
            num_slots: how many adapters there may be.
            max_rank: the largest rank of their factors.
            dtype: dtype of the activations.
            num_parts: how many equal parts of the outputs may be trained apart, each with factors of its own.
        """
        ...

    def plan_adapters(self, spans: AbstractSequence[SequenceSpan]) -> Any | None:
        """Works out, once a step, which rows have which adapter; None where none has one."""
        ...

    def prepare_grouped_linear(
        self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
    ) -> tuple[LinearKernel, int] | None:
        """As `prepare_gptq_linear`, for a grouped weight; see `prepare_linear` for `wide_results`."""
        ...

    def finish_loading(
        self, config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> None:
        """Proves or settles what must be before the first step; called once, when all weights are placed.

        Raises:
            ConfigError: what was asked for does not work on this device.
            RestartNeededError: the process is of no use any more; another start will go otherwise.
        """
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """[T, hidden] normalised in float32, cast to the weight's dtype, times weight [hidden]."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds x to the residual (which may be overwritten); returns the normalised sum and the sum, [T, hidden]."""
        ...

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`up * silu(gate)`, both [T, N]."""
        ...

    def gated_linear(self, gate: LinearKernel, up: LinearKernel) -> LinearKernel | None:
        """One call for `silu_mul(gate(x), up(x))`, to the same bits, where that is faster; else None."""
        ...

    def plan_attention(self, batch: ForwardBatch, cache: KVCache) -> Any:
        """Works out, once a step, what `attention` needs in every layer."""
        ...

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: Any) -> torch.Tensor:
        """Rotates queries and keys, writes keys and values to the cache, attends causally.

        Args:
            qkv: [T, sum(qkv_sizes)] of the checkpoint's `AttentionShape`, q, k and v side by side; backends so far
                serve as many heads of keys and values as of queries.
            layer: the number of the layer, whose cache is used.
            batch: the step.
            plan: what `plan_attention` returned for this batch.

        Returns:
            [T, num_heads * head_dim].
        """
        ...

    def capture_decode(self, context: StepContext, *, with_adapters: bool = False) -> DecodeGraphs | None:
        """Records decode steps of several batch sizes, perhaps with adapters; None where nothing is gained by it."""
        ...

    def make_steps(self, context: StepContext, *, is_recorded: bool = True) -> Steps | None:
        """Makes what lays out and runs steps that `capture_decode` did not record.

        Args:
            context: what all steps share.
            is_recorded: whether short steps should be recorded.

        Returns:
            None where `ForwardBatch.build` does as well.
        """
        ...

    def copy_to_host(self, tensors: list[torch.Tensor]) -> HostCopy:
        """Starts copying results to the host, after what has been launched so far."""
        ...
