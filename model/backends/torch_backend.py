"""The CPU's backend: kernels of our own where they serve, else plain torch operations.

The torch operations are also the reference that every kernel of our own is tested against. Only the kernels (cpu/)
promise that a row's result depends on that row alone; they multiply, normalise and attend for bfloat16 and float32
activations. On a 2-core AVX-512 machine (benchmarks/decode.py) their products read memory at its full speed for up to
6 rows, and are level with oneDNN beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from typing import Any

import torch
import torch.nn.functional as F

from model.backends.base import DecodeGraphs, HostCopy, LinearKernel, LowRankTable, StepContext, Steps
from model.backends.cpu.attention.step_attention import StepAttention, attention_code
from model.backends.cpu.linears.gated_linear import make_gated_linear
from model.backends.cpu.linears.gptq_linear import make_gptq_linear, make_grouped_linear
from model.backends.cpu.linears.packed_linear import make_dense_linear
from model.backends.cpu.low_rank.table import make_packed_table
from model.backends.cpu.rows.row_kernels import RowFunctions, row_functions
from model.backends.huge_pages import CachePages
from model.backends.memory import available_cpu_bytes
from model.backends.onednn_linear import make_onednn_linear
from model.backends.torch_attention import attention, plan_attention
from model.backends.torch_low_rank import TorchLowRankTable, plan_adapter_rows
from model.backends.weights import GPTQTensors, GroupedWeight
from model.contract.config import ModelConfig
from model.contract.errors import ConfigError
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.sampling.sampling_row import SampleTokens

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# A laptop's KV cache takes at most this much unless a size is asked for.
_DEFAULT_MAX_CPU_CACHE_BYTES = 4 << 30

_SMALL_MODEL_BYTES = 128 << 20


class TorchBackend:
    """Implements `Backend` with torch, and kernels of our own where they serve.

    It has nothing to queue, record or set aside: each call returns when its work is done.

    Args:
        device: the CPU; `TorchDeviceBackend` is for others.
        own_kernels: whether kernels of our own may serve.
    """

    runs_ahead = False
    sample_tokens: SampleTokens | None = None

    def __init__(self, device: torch.device, *, own_kernels: bool = True) -> None:
        self.device = device
        self._own_kernels = own_kernels
        self._epsilons: dict[float, torch.Tensor] = {}
        self._cache_pages = CachePages()

    def resolve_dtype(self, requested: str, declared: str | None) -> torch.dtype:
        """See `Backend`. float16 weights on a CPU run as bfloat16: CPUs have no fast float16 products."""
        if requested != "auto":
            return require_known_dtype(requested)
        ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # lacking where torch has no oneDNN
        has_fast_bf16 = ask is not None and bool(ask())
        if declared == "float32" or not has_fast_bf16:
            return torch.float32
        return torch.bfloat16

    def available_memory_bytes(self, gpu_memory_utilization: float) -> int:
        """See `Backend`. Half of what is available, at most 4 GiB."""
        return min(available_cpu_bytes() // 2, _DEFAULT_MAX_CPU_CACHE_BYTES)

    def measure_step_bytes(self, run: Callable[[], object]) -> int:
        """See `Backend`. The cache takes a part of what is free; steps have the rest."""
        return 0

    def step_table_bytes(self, config: ModelConfig, max_num_seqs: int, max_model_len: int, block_size: int) -> int:
        """See `Backend`. A step makes what it needs."""
        return 0

    def release_memory(self) -> None:
        """See `Backend`. Nothing is kept."""

    def set_num_threads(self, num_threads: int | None, weights_bytes: int) -> None:
        """See `Backend`. All cores; but one for small models, whose threads would wait more than they work.

        Measured with 64 streams of the 13 MB demo on two cores: 2,729 tokens/s with one thread, which leaves the other
        core to the HTTP process, and 2,190 at best with two.
        """
        if num_threads is None and weights_bytes < _SMALL_MODEL_BYTES:
            num_threads = 1
        if num_threads is not None:
            torch.set_num_threads(num_threads)

    def default_max_num_batched_tokens(self) -> int:
        """See `Backend`. A CPU prefills 512 tokens in seconds; more would stall the streams beside it."""
        return 512

    def default_max_step_ms(self) -> int:
        """See `Backend`. Text that comes two or three times a second still reads as a stream.

        Each step costs a prompt the time of the decodes in it: 34 ms for one of the 1.8B shape in Int4, which makes
        prompts 16% longer with steps of 250 ms, 11% with 350, 9% with 400.
        """
        return 400

    def prepare_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool = False
    ) -> LinearKernel:
        """See `Backend`. By kernels of our own, else by oneDNN, else by F.linear."""
        if self._own_kernels:
            packed_linear = make_dense_linear(weight, bias, wide_results=wide_results)
            if packed_linear is not None:
                return packed_linear
        return make_onednn_linear(weight, bias) or (lambda x: F.linear(x, weight, bias))

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. By kernels of our own where they serve; else the caller expands the weight."""
        return make_gptq_linear(weight, bias, dtype) if self._own_kernels else None

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
        """See `Backend`. With kernels of our own where they serve."""
        if self._own_kernels and self.device.type == "cpu":
            table = make_packed_table(num_inputs, num_outputs, num_slots, dtype)
            if table is not None:
                return table
        return TorchLowRankTable(num_outputs, num_slots, dtype, self.device)

    def plan_adapters(self, spans: AbstractSequence[SequenceSpan]) -> Any | None:
        """See `Backend`."""
        return plan_adapter_rows(spans, self.device)

    def prepare_grouped_linear(
        self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. By kernels of our own where they serve, as for a GPTQ weight."""
        return make_grouped_linear(weight, bias, dtype, wide_results=wide_results) if self._own_kernels else None

    def finish_loading(
        self, config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> None:
        """See `Backend`. Nothing is left to be settled."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Backend`."""
        functions = self._functions(weight.dtype)
        if functions is not None:
            return functions.norm(x.float().contiguous(), weight, epsilon)
        # F.rms_norm is eight small operations here and takes 90 us for one row; this takes 30.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self._epsilon(epsilon), norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
        return torch.mul(x, scale).to(weight.dtype).mul_(weight)

    def _epsilon(self, epsilon: float) -> torch.Tensor:
        tensor = self._epsilons.get(epsilon)
        if tensor is None:
            tensor = self._epsilons[epsilon] = torch.tensor(epsilon, dtype=torch.float32, device=self.device)
        return tensor

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend`."""
        functions = self._functions(weight.dtype)
        if functions is not None and x.dtype == weight.dtype and residual.dtype == torch.float32:
            return functions.add_norm(x.contiguous(), residual, weight, epsilon), residual
        residual += x
        return self.rms_norm(residual, weight, epsilon), residual

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        functions = self._functions(gate.dtype)
        return F.silu(gate).mul_(up) if functions is None else functions.silu_mul(gate, up)

    def gated_linear(self, gate: LinearKernel, up: LinearKernel) -> LinearKernel | None:
        """See `Backend`."""
        return make_gated_linear(gate, up)

    def _functions(self, dtype: torch.dtype) -> RowFunctions | None:
        return row_functions(dtype) if self._own_kernels else None

    def plan_attention(self, batch: ForwardBatch, cache: KVCache) -> _Plan:
        """See `Backend`."""
        if cache.data.is_cpu:
            longest = max(span.context_len for span in batch.spans)
            self._cache_pages.follow(cache.data.data_ptr(), cache.data.nbytes, longest, len(batch.token_ids))
        return _Plan(batch, cache, self._own_kernels)

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: _Plan) -> torch.Tensor:
        """See `Backend`."""
        return plan.attend(qkv, layer)

    def capture_decode(self, context: StepContext, *, with_adapters: bool = False) -> DecodeGraphs | None:
        """See `Backend`. There is nothing to record."""
        context.is_on_any_rank(True)
        return None

    def make_steps(self, context: StepContext, *, is_recorded: bool = True) -> Steps | None:
        """See `Backend`. `ForwardBatch.build` lays a batch out as well."""
        context.is_on_any_rank(True)
        return None

    def copy_to_host(self, tensors: list[torch.Tensor]) -> HostCopy:
        """See `Backend`. They are there already, or reading them waits."""
        return lambda: tensors


class _Plan:
    """Attention of a step: by kernels of our own or by torch, which depends on the activations' dtype."""

    def __init__(self, batch: ForwardBatch, cache: KVCache, own_kernels: bool) -> None:
        self._batch, self._cache, self._own_kernels = batch, cache, own_kernels
        self._attend: Callable[[torch.Tensor, int], torch.Tensor] | None = None

    def attend(self, qkv: torch.Tensor, layer: int) -> torch.Tensor:
        if self._attend is None:
            self._attend = self._choose(qkv.dtype)
        return self._attend(qkv, layer)

    def _choose(self, dtype: torch.dtype) -> Callable[[torch.Tensor, int], torch.Tensor]:
        batch, cache = self._batch, self._cache
        code = attention_code(cache, dtype) if self._own_kernels else None
        if code is not None:
            return StepAttention(code, batch, cache, dtype).attend
        plan = plan_attention(batch, cache)
        # Without `self`: a cycle would keep the step's tensors on the device until Python's collector runs.
        return lambda qkv, layer: attention(qkv, layer, batch, plan)


def require_known_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype of a name that the settings allow.

    Raises:
        ConfigError: unknown name.
    """
    if name not in _DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def require_known_cache_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype of a name that the settings allow for the KV cache: those of activations, and int8.

    Raises:
        ConfigError: unknown name.
    """
    return torch.int8 if name == "int8" else require_known_dtype(name)
