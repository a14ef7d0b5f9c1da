"""Tries and times the CPU kernels, for a person to read; changes nothing."""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from model.backends.base import LinearKernel
from model.backends.cpu.attention.step_attention import attention_code
from model.backends.cpu.linears.gptq_linear import make_gptq_linear
from model.backends.cpu.linears.packed_linear import make_dense_linear
from model.backends.exam import KernelExam
from model.backends.torch_backend import TorchBackend
from model.backends.weights import GPTQTensors
from model.contract.config import ModelConfig
from model.execution.forward_batch import ForwardBatch, SequenceSpan
from model.execution.kv_cache import KVCache
from model.quantization.gptq import dequantize

_CPU = torch.device("cpu")
# Outputs of a product that is compared with torch; a multiple of what the kernels take at a time.
_FEW_OUTPUTS = 128
_TOLERANCE = {torch.bfloat16: 4e-2, torch.float32: 1e-3}
_NUM_SEQS, _CONTEXT = 4, 1024
_REPEATS = 7
# Bytes written between two timings; larger than the caches of most processors.
_FLUSH_BYTES = 128 << 20


def examine_cpu(
    config: ModelConfig, dtype: torch.dtype, cache_dtype: torch.dtype, *, all_kernels: bool
) -> list[KernelExam]:
    """Examines the kernels in a checkpoint's shapes; see `examine_kernels`."""
    bits = None if config.quantization is None else config.quantization.bits
    group_size = 128 if config.quantization is None else config.quantization.group_size
    is_packed = config.stored_weights is not None and any(config.stored_weights.packed_bytes)
    if is_packed:
        group_size = 32  # that of most GGUF types
    exams = []
    if all_kernels or (bits is None and not is_packed and dtype == torch.bfloat16):
        exams.append(_examine_product("product, bfloat16", config, torch.bfloat16, None, group_size))
    exams += [
        _examine_product(f"product, Int{number}", config, dtype, number, group_size)
        for number in (4, 8)
        if all_kernels or is_packed or bits == number
    ]
    cached = (torch.float32, torch.bfloat16, torch.int8) if all_kernels else (cache_dtype,)
    return exams + [_examine_decode_attention(config, each) for each in cached]


def _examine_product(
    name: str, config: ModelConfig, dtype: torch.dtype, bits: int | None, group_size: int
) -> KernelExam:
    num_inputs = config.hidden_size
    made = _make_product(_FEW_OUTPUTS, num_inputs, dtype, bits, group_size)
    if made is None:
        return KernelExam(name, None, 0.0, _why_no_product(config))
    product, weight = made
    error = 0.0
    for num_rows in (1, 5):
        x = torch.randn(num_rows, num_inputs).to(dtype)
        error = max(error, _relative(product(x), F.linear(x.float(), weight)))
    tolerance = _TOLERANCE[dtype]
    if not error <= tolerance:
        return KernelExam(name, error, tolerance, "it disagrees with torch")
    num_outputs = config.intermediate_size // 2
    large = _make_product(num_outputs, num_inputs, dtype, bits, group_size)
    if large is None:
        return KernelExam(name, error, tolerance, f"it does not take {num_outputs} outputs of {num_inputs} inputs")
    x = torch.randn(1, num_inputs).to(dtype)
    num_bytes = num_outputs * num_inputs * (bits or 16) // 8
    return KernelExam(name, error, tolerance, None, _time_us(lambda: large[0](x)), num_bytes)


def _make_product(
    num_outputs: int, num_inputs: int, dtype: torch.dtype, bits: int | None, group_size: int
) -> tuple[LinearKernel, torch.Tensor] | None:
    """A random product by our kernel, and the weight [N, K] float32 that it stands for."""
    if bits is None:
        weight = (torch.randn(num_outputs, num_inputs) / math.sqrt(num_inputs)).bfloat16()
        linear = make_dense_linear(weight, None, wide_results=False)
        return None if linear is None else (linear, weight.float())
    size = num_inputs if group_size == -1 else group_size
    num_groups = -(-num_inputs // size)
    per_word = 32 // bits
    limit = 1 << 31
    stored = GPTQTensors(
        torch.randint(-limit, limit, (num_inputs // per_word, num_outputs)).int(),
        torch.randint(-limit, limit, (num_groups, num_outputs // per_word)).int(),
        (torch.rand(num_groups, num_outputs) / 64).half(),
        torch.arange(num_inputs) // size,
        bits,
    )
    packed = make_gptq_linear(stored, None, dtype)
    if packed is None:
        return None
    # Only the small ones are compared.
    return packed[0], dequantize(stored, torch.float32) if num_outputs == _FEW_OUTPUTS else torch.empty(0)


def _why_no_product(config: ModelConfig) -> str:
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed"
    return f"it does not take {config.hidden_size} inputs, or it cannot be compiled (start the server to see why)"


def _examine_decode_attention(config: ModelConfig, cache_dtype: torch.dtype) -> KernelExam:
    name = f"decode attention, {str(cache_dtype).removeprefix('torch.')} cache"
    small = _cache(config, 12, cache_dtype)
    if attention_code(small, torch.float32) is None:
        missing = importlib.util.find_spec("llvmlite") is None
        reason = "llvmlite is not installed" if missing else f"it does not take heads of {config.head_dim}"
        return KernelExam(name, None, 0.0, reason)
    tables = [[7, 2, 5], [4]]
    spans = [SequenceSpan([0], length - 1, 1.0, table, 1) for length, table in zip((37, 1), tables, strict=True)]
    found, expected = (_attention(config, small, spans, own_kernels=own)() for own in (True, False))
    error, tolerance = _relative(found, expected), _TOLERANCE[torch.float32]
    if not error <= tolerance:
        return KernelExam(name, error, tolerance, "it disagrees with torch")
    num_blocks = _CONTEXT // 16
    large = _cache(config, _NUM_SEQS * num_blocks, cache_dtype)
    spans = [
        SequenceSpan([0], _CONTEXT - 1, 1.0, list(range(i * num_blocks, (i + 1) * num_blocks)), 1)
        for i in range(_NUM_SEQS)
    ]
    run = _attention(config, large, spans, own_kernels=True)
    return KernelExam(name, error, tolerance, None, _time_us(run), large.num_bytes)


def _cache(config: ModelConfig, num_blocks: int, dtype: torch.dtype) -> KVCache:
    """A cache of one layer of random numbers."""
    size = (1, 2, config.num_heads, num_blocks * 16, config.head_dim)
    if dtype == torch.int8:
        return KVCache(torch.randint(-127, 128, size, dtype=torch.int8), 16, torch.rand(size[:-1]) / 127)
    return KVCache(torch.randn(size).to(dtype), 16)


def _attention(
    config: ModelConfig, cache: KVCache, spans: list[SequenceSpan], *, own_kernels: bool
) -> Callable[[], torch.Tensor]:
    backend = TorchBackend(_CPU, own_kernels=own_kernels)
    batch = ForwardBatch.build(spans, config, cache.block_size, _CPU)
    plan = backend.plan_attention(batch, cache)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(len(spans), 3 * config.num_heads * config.head_dim, generator=generator)
    return lambda: backend.attention(qkv.clone(), 0, batch, plan)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest magnitude; NaN if there is one."""
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max() / expected.abs().max())


def _time_us(run: Callable[[], object]) -> float:
    """The median time of a call whose operands are not in the processor's cache."""
    run()
    times = []
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8)
    for _ in range(_REPEATS):
        flush.fill_(1)
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)
