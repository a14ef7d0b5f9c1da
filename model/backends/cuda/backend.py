"""The device operations on an NVIDIA GPU: Triton kernels where they win, torch's libraries for the large products."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from model.backends.base import HostCopy, LinearKernel, LowRankTable
from model.backends.cuda.gptq_layout import PackedKind, PackedWeight, pack, pack_grouped
from model.backends.cuda.kernels.matmul.gptq_matmul import MAX_ROWS_OF_TILES
from model.backends.cuda.linear_choice import LinearChoice, time_us_on_device, wide_product, wide_products_work
from model.backends.cuda.low_rank import CudaLowRankTable, plan_adapter_table
from model.backends.cuda.notes import Notes, device_notes
from model.backends.cuda.operations import Operations
from model.backends.cuda.sampling import sample_tokens
from model.backends.cuda.self_check.check import check_kernels
from model.backends.cuda.self_check.inputs import KernelShape
from model.backends.cuda.steps.attention_plan import AttentionPlan, make_plan
from model.backends.cuda.steps.recorded_steps import RecordedSteps
from model.backends.cuda.steps.recording import CudaRecorder
from model.backends.memory import available_device_bytes, measure_step_bytes
from model.backends.torch_backend import require_known_dtype
from model.backends.weights import GPTQTensors, GroupedWeight
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.sampling.sampling_row import SampleTokens

logger = logging.getLogger(__name__)

_MAX_NUM_BATCHED_TOKENS = 4096


class CudaBackend(RecordedSteps):
    """Implements `Backend` with Triton.

    Args:
        device: a CUDA device of compute capability 8.0 or above; the CPU when Triton interprets (tests).
        must_pass: whether to refuse to start where a kernel fails, instead of having torch do its work.
        batch_invariant: whether a row's result must not depend on what else is in the step: tiles of one size for every
            product, and keys cut into as many parts always. Then every kernel must pass.
    """

    def __init__(self, device: torch.device, *, must_pass: bool = False, batch_invariant: bool = False) -> None:
        self.device = device
        self.runs_ahead = True
        must_pass |= batch_invariant
        self.operations = Operations(device, may_replace=not must_pass)
        self._must_pass, self._batch_invariant = must_pass, batch_invariant
        self._notes = Notes(None)
        self._dtype = torch.bfloat16
        self.sample_tokens: SampleTokens | None = functools.partial(sample_tokens, self.operations)
        self._has_wide_products = False
        self._linears: LinearChoice | None = None
        self._packed_kinds: set[PackedKind] = set()
        if device.type == "cuda":
            # Triton launches on the current device and takes its current stream.
            torch.cuda.set_device(device)
            # Partial sums of split products stay float32.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            self._recorder = CudaRecorder()
            self._has_wide_products = wide_products_work(device)
            self._notes = device_notes(device)
            self._linears = LinearChoice(time_us_on_device(device), self._notes)

    def resolve_dtype(self, requested: str, declared: str | None) -> torch.dtype:
        """See `Backend`."""
        return require_known_dtype(requested if requested != "auto" else declared or "bfloat16")

    def available_memory_bytes(self, gpu_memory_utilization: float) -> int:
        """See `Backend`."""
        return available_device_bytes(self.device, gpu_memory_utilization)

    def measure_step_bytes(self, run: Callable[[], object]) -> int:
        """See `Backend`."""
        return measure_step_bytes(self.device, run)

    def release_memory(self) -> None:
        """See `Backend`."""
        torch.cuda.empty_cache()

    def set_num_threads(self, num_threads: int | None, weights_bytes: int) -> None:
        """See `Backend`. The CPU only prepares steps: one thread, unless told otherwise."""
        torch.set_num_threads(num_threads or 1)

    def default_max_num_batched_tokens(self) -> int:
        """See `Backend`."""
        return _MAX_NUM_BATCHED_TOKENS

    def default_max_step_ms(self) -> int:
        """See `Backend`. The largest step is short enough."""
        return 0

    def prepare_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, wide_results: bool = False
    ) -> LinearKernel:
        """See `Backend`. cuBLAS, and for up to four rows a kernel of our own where that is faster."""
        if self._batch_invariant:
            result = torch.float32 if wide_results else weight.dtype
            tiles = self.operations["tile_matmul"]
            return lambda x: tiles(x, weight, bias, result)
        library: LinearKernel = functools.partial(F.linear, weight=weight, bias=bias)
        result = weight.dtype
        if wide_results and bias is None and weight.dtype != torch.float32 and self._has_wide_products:
            library, result = wide_product(weight), torch.float32
        return library if self._linears is None else self._linears.choose(library, weight, bias, result)

    def prepare_gptq_linear(
        self, weight: GPTQTensors, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. Stays quantised, unless its groups are of an unusual size."""
        packed = pack(weight)
        if packed is None:
            logger.warning("a GPTQ layer's groups are no multiples of 16 inputs; its weight is expanded")
            return None
        return self._packed_linear(packed, bias)

    def prepare_grouped_linear(
        self, weight: GroupedWeight, bias: torch.Tensor | None, dtype: torch.dtype, *, wide_results: bool = False
    ) -> tuple[LinearKernel, int] | None:
        """See `Backend`. By the kernels of GPTQ, unless its groups are of an unusual size."""
        packed = pack_grouped(weight, wide_results=wide_results)
        if packed is None:
            return None
        has_offsets, has_codes = packed.offsets is not None, packed.codes is not None
        size = -1 if weight.scales.shape[1] == 1 else weight.group_size
        self._packed_kinds.add(PackedKind(weight.bits, size, has_offsets, has_codes))
        return self._packed_linear(packed, bias)

    def _packed_linear(self, weight: PackedWeight, bias: torch.Tensor | None) -> tuple[LinearKernel, int]:
        num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        return functools.partial(self._gptq_matmul, weight, bias), num_bytes

    def _gptq_matmul(self, weight: PackedWeight, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        if self._batch_invariant:
            fixed: torch.Tensor = self.operations["gptq_few_rows"](x, weight, bias, batch_invariant=True)
            return fixed
        name = "gptq_one_row" if len(x) == 1 else "gptq_few_rows" if len(x) <= MAX_ROWS_OF_TILES else "gptq_many_rows"
        out: torch.Tensor = self.operations[name](x, weight, bias)
        return out

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
        """See `Backend`."""
        return CudaLowRankTable(
            self.operations, num_inputs, num_outputs, num_slots, max_rank, num_parts, dtype, self.device
        )

    def plan_adapters(self, spans: AbstractSequence[SequenceSpan]) -> Any | None:
        """See `Backend`."""
        return plan_adapter_table(spans, self.device)

    def finish_loading(
        self, config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, block_size: int
    ) -> None:
        """See `Backend`. Every kernel is tried, and what of them to use is settled."""
        self._dtype = dtype
        shape = replace(
            KernelShape.of(config, self.device, dtype, cache_dtype, block_size),
            packed_kinds=tuple(sorted(self._packed_kinds)),
        )
        check_kernels(self.operations, shape, self._notes, must_pass=self._must_pass)
        if self._linears is not None and "row_matmul" not in self.operations.replaced:
            self._linears.decide()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Backend`."""
        out: torch.Tensor = self.operations["rms_norm"](x, weight, epsilon)
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Backend`."""
        return self.operations["rms_norm"](x, weight, epsilon, residual), residual

    def silu_mul(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        out: torch.Tensor = self.operations["silu_mul"](gate, up)
        return out

    def gated_linear(self, gate: LinearKernel, up: LinearKernel) -> LinearKernel | None:
        """See `Backend`. Not yet: both in one take an H200 20.6 us where two take 22.4 (7B Int4), silu some 2 more."""
        return None

    def plan_attention(self, batch: ForwardBatch, cache: KVCache) -> AttentionPlan:
        """See `Backend`."""
        if batch.attention_plan is not None:
            plan: AttentionPlan = batch.attention_plan
            return plan
        return make_plan(batch.spans, cache, batch.token_ids.device, self._dtype, batch_invariant=self._batch_invariant)

    def attention(self, qkv: torch.Tensor, layer: int, batch: ForwardBatch, plan: AttentionPlan) -> torch.Tensor:
        """See `Backend`."""
        data = plan.cache.data[layer]
        scales = None if plan.cache.scales is None else plan.cache.scales[layer]
        rotate = self.operations["rotate_and_cache"]
        query: torch.Tensor = rotate(qkv, batch.cos, batch.sin, batch.query_scale, batch.slots, data, scales)
        out = torch.empty_like(query)
        block_size, window = plan.cache.block_size, plan.cache.window_of(layer)
        if plan.decodes is not None:
            decode = self.operations["decode_attention"]
            decode(
                query,
                data,
                scales,
                plan.decodes,
                out,
                block_size=block_size,
                num_splits=plan.num_splits_for(window),
                window=window,
            )
        if plan.tiles is not None:
            prefill = self.operations["prefill_attention"]
            prefill(query, data, scales, plan.tiles, out, block_size=block_size, window=window)
        return out.view(len(out), -1)

    def copy_to_host(self, tensors: list[torch.Tensor]) -> HostCopy:
        """See `Backend`. To pinned memory, in the order of the stream; waiting is for these copies alone."""
        if self.device.type != "cuda":
            return lambda: tensors
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        # Blocking: who waits otherwise keeps a core at work, and finds out no sooner.
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()

        def wait() -> list[torch.Tensor]:
            event.synchronize()
            return copies

        return wait
