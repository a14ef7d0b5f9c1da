"""What the model asks of a device. One implementation a kind of device; the rest of `model/` never names one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from model.forward_batch import ForwardBatch
from model.kv_cache import KVCache

LinearKernel = Callable[[torch.Tensor], torch.Tensor]


class GPTQTensors(NamedTuple):
    """A quantised weight as it is stored; see `model.quantization.gptq`.

    Attributes:
        qweight: [K / per, N] int32.
        qzeros: [G, N / per] int32, zeros minus one.
        scales: [G, N].
        groups: [K] int64, the group of each input.
        bits: 4 or 8.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    groups: torch.Tensor
    bits: int


class Backend(Protocol):
    """Device operations. Implementations hold no state of a request; a plan is made anew each step.

    Attributes:
        name: for logs.
        device: where parameters, cache and activations live.
    """

    name: str
    device: torch.device

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
        """Bytes that the KV cache may take now that the weights are loaded."""
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

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """[T, hidden] normalised in float32, cast to the weight's dtype, times weight [hidden]."""
        ...

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """`up * silu(gate)`, both [T, N]."""
        ...

    def plan_attention(self, batch: ForwardBatch, cache: KVCache) -> Any:
        """Works out, once a step, what `attention` needs in every layer."""
        ...

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: Any) -> torch.Tensor:
        """Rotates queries and keys, writes keys and values to the cache, attends causally.

        Args:
            qkv: [T, 3 * num_heads * head_dim], q, k and v side by side.
            layer: whose cache.
            batch: the step.
            plan: of `plan_attention` for this batch.

        Returns:
            [T, num_heads * head_dim].
        """
        ...
