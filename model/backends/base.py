"""What the model asks of a device. One implementation a kind of device; the rest of `model/` never names one."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from model.adapters.low_rank import LowRankUpdate
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.sampling.sampling_row import SampleTokens

LinearKernel = Callable[[torch.Tensor], torch.Tensor]

# The most tokens of a step with prompts that is recorded; for longer ones a device takes longer than their launches.
MAX_RECORDED_TOKENS = 1024

# Waits for tensors on their way to the host, and returns them.
HostCopy = Callable[[], list[torch.Tensor]]


class GPTQTensors(NamedTuple):
    """A quantised weight as it is stored; see `model.quantization.gptq`.

    Attributes:
        qweight: [K / per, N] int32.
        qzeros: [G, N / per] int32, zeros minus `zero_offset`.
        scales: [G, N].
        groups: [K] int64, the group of each input.
        bits: 4 or 8.
        zero_offset: 1 in the published layout, 0 in the second one.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    bits: int
    zero_offset: int = 1

    def has_equal_groups(self) -> bool:
        """Whether all groups have as many inputs."""
        sizes = torch.bincount(self.groups, minlength=len(self.scales))
        return bool((sizes * len(self.scales) == len(self.groups)).all())

    def order_by_group(self) -> torch.Tensor | None:
        """The inputs sorted by group, [K] int64; None where they are sorted as they are stored (no act-order)."""
        is_sorted = not bool((self.groups[1:] < self.groups[:-1]).any())
        return None if is_sorted else torch.argsort(self.groups, stable=True)


class LowRankTable(Protocol):
    """The low-rank factors that adapters have for one linear layer, by slot."""

    def prepare(self, updates: AbstractSequence[LowRankUpdate]) -> tuple[Any, int]:
        """Lays factors out for the device; changes nothing, so any thread may call it.

        Args:
            updates: of one adapter, at least one.

        Returns:
            what `put` takes, and its bytes.

        Raises:
            AdapterError: a factor is beyond what the activations' type can hold.
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
            plan: of `Backend.plan_adapters`.

        Returns:
            [T, N].
        """
        ...


class GroupedWeight(NamedTuple):
    """A weight of small integers with a scale, and perhaps an offset, for each group of consecutive inputs.

    `weight[n, k] = scales[n, g] * level + offsets[n, g]` with `g = k // (K / G)`, where the level of a value is
    `values[n, k] - zero`, or `codes[values[n, k]]`.

    Attributes:
        values: [N, K] uint8, from 0 to 2 ** bits - 1.
        scales: [N, G] float32.
        offsets: the same, or None.
        bits: 4 or 8.
        zero: the value whose level is 0: 128 of 8 bits; 8 or 0 of 4 bits.
        codes: [16] float32 of 4 bits, or None.
    """

    values: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bits: int
    zero: int
    codes: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """N and K."""
        return self.values.shape

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.values.shape[1] // self.scales.shape[1]

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(t.nbytes for t in (self.values, self.scales, self.offsets) if t is not None)


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
            logits [S, vocab_size] float32, overwritten by the next run.
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
            the hidden states of the rows whose logits are needed, [R, hidden_size].
        """
        ...


class Backend(Protocol):
    """Device operations. Implementations hold no state of a request; a plan is made anew each step.

    Attributes:
        name: for logs.
        device: where parameters, cache and activations live.
        runs_ahead: whether work is queued, so that the next step can be launched while one runs.
        sample_tokens: picks tokens from logits; None leaves it to the sampler's torch operations.
    """

    name: str
    device: torch.device
    runs_ahead: bool
    sample_tokens: SampleTokens | None

    def resolve_dtype(self, requested: str, declared: str | None) -> torch.dtype:
        """Chooses the activation dtype.

        Args:
            requested: "auto" or a dtype's name.
            declared: what the checkpoint says of itself, if anything.

        Raises:
            ConfigError: the device cannot compute in the requested dtype.
        """
        ...

    def available_memory_bytes(self, gpu_memory_utilization: float) -> int:
        """Bytes that the KV cache and the steps may take now that the weights are loaded."""
        ...

    def measure_step_bytes(self, run: Callable[[], object]) -> int:
        """Bytes that a step takes while it runs, where that must be set aside; else 0, without running it.

        Args:
            run: the largest step there can be.
        """
        ...

    def step_table_bytes(self, config: ModelConfig, max_num_seqs: int, max_model_len: int, block_size: int) -> int:
        """Bytes of what is kept for all steps beside weights and cache, and grows with the longest sequence."""
        ...

    def release_memory(self) -> None:
        """Gives back what is kept for reuse; called after running out of memory."""
        ...

    def set_num_threads(self, num_threads: int | None, weights_bytes: int) -> None:
        """Decides how many CPU threads tensor work uses.

        Args:
            num_threads: what was asked for, or None.
            weights_bytes: size of the model.
        """
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
            a function from [T, K] to [T, N].
        """
        ...

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """Lays out a quantised weight for multiplying.

        Args:
            weight: the caller keeps no reference.
            bias: [N] or None.
            dtype: of the activations.

        Returns:
            a function from [T, K] to [T, N] and the bytes it holds; None if the caller should expand the weight.
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
            max_rank: that their factors may have.
            dtype: of the activations.
            num_parts: equal parts of the outputs that may be trained apart, each with factors of its own.
        """
        ...

    def plan_adapters(self, spans: AbstractSequence[SequenceSpan]) -> Any | None:
        """Works out, once a step, which rows have which adapter; None where none has one."""
        ...

    def prepare_grouped_linear(
        self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
    ) -> tuple[LinearKernel, int] | None:
        """Lays out a grouped weight for multiplying.

        Args:
            weight: the caller keeps no reference.
            bias: [N] or None.
            dtype: of the activations.
            wide_results: see `prepare_linear`.

        Returns:
            as `prepare_gptq_linear`.
        """
        ...

    def finish_loading(
        self, config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> None:
        """Called once when all weights are placed: whatever must be proved or settled before the first step.

        Args:
            config: of the checkpoint.
            dtype: of the activations.
            cache_dtype: of keys and values.
            block_size: tokens in a block of the cache.

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
        """Adds x to the residual (which may be overwritten), and normalises the sum.

        Returns:
            the normalised sum and the sum, both [T, hidden].
        """
        ...

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`up * silu(gate)`, both [T, N]."""
        ...

    def gated_linear(self, gate: LinearKernel, up: LinearKernel) -> LinearKernel | None:
        """One call for `silu_mul(gate(x), up(x))`, to the same bits, where that is faster; else None.

        Args:
            gate: what `prepare_linear`, or another of its kind, returned.
            up: the same.
        """
        ...

    def plan_attention(self, batch: ForwardBatch, cache: KVCache) -> Any:
        """Works out, once a step, what `attention` needs in every layer."""
        ...

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: Any) -> torch.Tensor:
        """Rotates queries and keys, writes keys and values to the cache, attends causally.

        Args:
            qkv: [T, sum(qkv_sizes)] of the checkpoint's `AttentionShape`, q, k and v side by side; backends so far
                serve as many heads of keys and values as of queries.
            layer: whose cache.
            batch: the step.
            plan: of `plan_attention` for this batch.

        Returns:
            [T, num_heads * head_dim].
        """
        ...

    def capture_decode(self, context: StepContext, *, with_adapters: bool = False) -> DecodeGraphs | None:
        """Records decode steps of several batch sizes.

        Args:
            context: what all steps share.
            with_adapters: whether rows may have adapters.

        Returns:
            what replays them, or None where nothing is gained by it.
        """
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
